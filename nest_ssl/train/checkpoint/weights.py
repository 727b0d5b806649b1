"""Weights and settings in files of NeMo's and Lightning's: what may be in them, and settings as plain builtins.

Both put OmegaConf's objects into checkpoints. Only references within the settings are followed, and nothing may grow
without end.
"""

from __future__ import annotations

import collections
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf, nodes
from omegaconf.base import ContainerMetadata, Metadata
from omegaconf.errors import OmegaConfBaseException

from nest_ssl.base.errors import UserError
from nest_ssl.base.safe_load import ANOTHER_FILE, READER_ERRORS, first_line, load_tensors

# All of them hold data: none opens, imports or calls anything when it is unpickled.
# fmt: off
SETTINGS_CLASSES: list[Any] = [
    DictConfig, ListConfig, ContainerMetadata, Metadata, nodes.AnyNode, nodes.StringNode, nodes.IntegerNode,
    nodes.FloatNode, nodes.BooleanNode, typing.Any, collections.defaultdict, dict, list, tuple, str, int, float, bool,
]
# fmt: on
REFERENCE = re.compile(r"\$\{([\w.-]+)\}")  # `${model.sample_rate}`, and not `${oc.env:HOME}`
SETTINGS_AT_MOST = 100_000  # values, once references are replaced: NeMo's largest files have some hundred
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEEPEST = 32  # nesting of settings


@contextmanager
def settings_allowed() -> Iterator[None]:
    """Meanwhile `torch.load(weights_only=True)` takes OmegaConf's settings too, which NeMo's checkpoints hold."""
    with torch.serialization.safe_globals(SETTINGS_CLASSES):
        yield


def load_weights(source: Path | BinaryIO, where: str = "", mapped: bool = False) -> Any:
    """`load_tensors` of a file that may hold settings too."""
    return load_tensors(source, where, mapped, SETTINGS_CLASSES)


def check_state_dict(value: Any, where: str) -> dict[str, torch.Tensor]:
    """`value`, if it maps names to tensors that can be weights: dense floats of 16 bits or more, or whole counts.

    Raises:
        UserError: it does not.
    """
    if not (isinstance(value, Mapping) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in value.items())):
        raise UserError("no state dict: names and their tensors", where, ANOTHER_FILE)
    for name, tensor in value.items():
        number = tensor.dtype in FLOATS or (tensor.dtype == torch.int64 and tensor.ndim == 0)
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (number and dense and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()):
            kind = f"{tensor.dtype}, {list(tensor.shape)}"
            raise UserError("an entry that cannot be a weight", f"{where}: {name} ({kind})", ANOTHER_FILE)
    return dict(value)


def check_finite(state_dict: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse weights from which nothing can be trained.

    Raises:
        UserError: names the first entry with a NaN or an infinite value.
    """
    for name, tensor in state_dict.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError("weights that are NaN or infinite", f"{where}: {name}", ANOTHER_FILE)


def plain_settings(config: Any, where: str) -> dict[str, Any]:
    """A mapping of settings as plain builtins, its `${...}` references replaced by their values.

    Raises:
        UserError: it is no mapping, a reference leads nowhere or grows without end, or a value asks for more than
            another setting (`${oc.env:HOME}`).
    """
    try:
        raw = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
        if not isinstance(raw, dict):
            raise UserError("no settings", where, ANOTHER_FILE)
        resolved = _Settings(raw, where).resolve(raw)
    except (OmegaConfBaseException, *READER_ERRORS) as error:
        raise UserError("settings that cannot be read", f"{where}: {first_line(error)}", ANOTHER_FILE) from error
    return {str(key): value for key, value in resolved.items()}


@dataclass
class _Settings:
    """Replaces references by what they name, within a budget: a few lines of them can ask for 2^60 values."""

    root: dict[Any, Any]
    where: str
    left: int = SETTINGS_AT_MOST

    def resolve(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if depth > DEEPEST or self.left < 0:
            raise UserError("settings that are nested or refer to each other without end", self.where, ANOTHER_FILE)
        if isinstance(value, dict):
            return {key: self.resolve(child, depth + 1) for key, child in value.items()}
        if isinstance(value, list):
            return [self.resolve(child, depth + 1) for child in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        reference = REFERENCE.fullmatch(value)
        if reference is None:
            raise UserError("a setting that is not a value", f"{self.where}: {value[:80]}", "Write the value itself.")
        target: Any = self.root
        for key in reference[1].split("."):
            if not isinstance(target, dict) or key not in target:
                raise UserError("a reference to nothing", f"{self.where}: {value[:80]}", "Write the value itself.")
            target = target[key]
        return self.resolve(target, depth + 1)
