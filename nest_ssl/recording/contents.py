"""What the files of tensors hold: shapes that are checked when a file is read, and what a reader answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from nest_ssl.recording.calls import Call

CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _with_names(group: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(group.get("params"), list) or not all(isinstance(name, str) for name in group["params"]):
        raise ValueError("params has to be a list of names")
    return group


class OptimizerState(TypedDict):
    """By parameter name; every group has the names of its parameters as `params`, and its settings."""

    state: dict[str, dict[str, Any]]
    param_groups: list[Annotated[dict[str, Any], AfterValidator(_with_names)]]


@with_config(CONFIG)
class Changes(TypedDict):
    """A table as far as it differs from the one in another file, `base`."""

    base: str
    names: list[str]
    entries: dict[str, Any]


@with_config(CONFIG)
class OptimizerStart(Changes):
    param_groups: list[Annotated[dict[str, Any], AfterValidator(_with_names)]]


@with_config(CONFIG)
class Applied(TypedDict):
    norm: torch.Tensor | None
    factor: torch.Tensor | None
    scaled: list[str]
    entries: dict[str, torch.Tensor | None]


@with_config(CONFIG)
class ValidationOutput(TypedDict):
    """What a call of the model, or of a module directly in it, returned."""

    module: str
    call: int
    output: Any


@with_config(CONFIG)
class ValidationBatch(TypedDict):
    """The first batch that the loader of this number gave to a validation, and what came of it, as calls ended."""

    loader: int
    fields: Any
    outputs: list[ValidationOutput]


@with_config(CONFIG)
class Validation(TypedDict):
    """A validation, by the training batch that came next; `metrics` is what it gave in all, e.g. ``val_loss``.

    Of later validations of a run there are no batches.
    """

    before_step: int
    batches: list[ValidationBatch]
    metrics: dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class AppliedGradients:
    """Gradients as the optimizer used them.

    Args:
        gradients: of every trained parameter.
        norm: the norm of all of backward's gradients together, before clipping.
        factor: what gradients were multiplied by, if one number says it (in every bit); those are `scaled`.
        edited: names of those that changed in any other way.
    """

    gradients: dict[str, torch.Tensor | None]
    norm: torch.Tensor | None
    factor: torch.Tensor | None
    scaled: list[str]
    edited: list[str]


NESTED = TypeAdapter(Any)
BY_NAME = TypeAdapter(dict[str, Any], config=CONFIG)
TENSORS = TypeAdapter(dict[str, torch.Tensor], config=CONFIG)
GRADIENTS = TypeAdapter(dict[str, torch.Tensor | None], config=CONFIG)
STATES = TypeAdapter(dict[str, dict[str, torch.Tensor]], config=CONFIG)
OPTIMIZER = TypeAdapter(OptimizerState)
CHANGES = TypeAdapter(Changes)
OPTIMIZER_START = TypeAdapter(OptimizerStart)
APPLIED = TypeAdapter(Applied)
VALIDATION = TypeAdapter(Validation)
ENTRIES = TypeAdapter(dict[str, dict[str, Any]])
CALLS = TypeAdapter(list[Call])
