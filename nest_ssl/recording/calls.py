"""One call of one module in a recorded step, as `layer_outputs.pkl` holds it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field

# Index of the call that returned it, and the path in that output; on disk a list, as every sequence.
Producer = Annotated[tuple[int, str], Field(strict=False)]


@dataclass(slots=True)
class Call:
    """What went into a call, what came out and what came back in backward; values are builtins and CPU tensors.

    Args:
        index: the place in the list of calls, in the order in which they started.
        module: dotted name; empty for the root.
        call: the how-many-th call of this module, from 0.
        training: whether the module was in training mode.
        args: positional arguments, named by `arg_names` (by position where `forward` takes ``*args``).
        start: how many starts and ends of calls of the step came before this start; the event number of `Moment`.
        end: the same of its end.
        producers: for each input tensor that a call returned and nothing has edited since, by its path among the inputs
            (``x``, ``x.0``): the call that returned it last.
        output_grads: the gradient that backward brought to each output tensor, by its path in the output.
        grad_event: the place in the order in which backward reached the outputs; None where it never did.
        raised: whether it ended by an exception, with no output.
    """

    __pydantic_config__ = ConfigDict(strict=True, arbitrary_types_allowed=True, revalidate_instances="always")

    index: int
    module: str
    call: int
    training: bool
    args: list[Any]
    arg_names: list[str]
    kwargs: dict[str, Any]
    start: int
    end: int = -1
    output: Any = None
    producers: dict[str, Producer] = field(default_factory=dict)
    output_grads: dict[str, torch.Tensor] = field(default_factory=dict)
    grad_event: int | None = None
    raised: bool = False

    @property
    def inputs(self) -> dict[str, Any]:
        """All arguments by name."""
        return dict(zip(self.arg_names, self.args, strict=True)) | self.kwargs

    @property
    def name(self) -> str:
        """``encoder.layers.0#1``"""
        return f"{self.module}#{self.call}"

    def as_builtins(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}
