"""Nested values (tensors in lists and dicts) as recordings keep them: copied, reduced to builtins, addressed by path.

A path joins list indices and dict keys with dots; a bare tensor has the empty path. `("a", {"x": t})` holds `1.x`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeVar

import torch

DEEPEST = 100  # nesting that anything real has; deeper, or endless, is damage
K = TypeVar("K")
R = TypeVar("R")
C = TypeVar("C")


class Absent(Enum):
    """The type of `ABSENT`, which None is not: a gradient may be None."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


def pairs(
    reference: Mapping[K, R], candidate: Mapping[K, C]
) -> Iterator[tuple[K, R | Literal[Absent.ABSENT], C | Literal[Absent.ABSENT]]]:
    """Outer join: every key of either in the reference's order, then the candidate's further ones in its own."""
    for key in {**dict.fromkeys(reference), **dict.fromkeys(candidate)}:
        yield key, reference.get(key, ABSENT), candidate.get(key, ABSENT)


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested value with its path, in order.

    Raises:
        ValueError: nested deeper than `DEEPEST`.
    """
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)  # type: ignore[assignment]
    else:
        yield path, value
        return
    if depth == DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    for key, child in children:
        yield from leaves(child, f"{path}.{key}" if path else str(key), depth + 1)


def tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a nested value with its path, in order."""
    return ((path, leaf) for path, leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def plain(value: Any) -> Any:
    """Nested mappings and sequences (OmegaConf's too) as dicts and lists, interpolations resolved."""
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    return value


def to_builtins(value: Any, copy: Callable[[torch.Tensor], Any]) -> Any:
    """The same nesting in lists and dicts, its tensors through `copy`, anything exotic as ``{"__repr__": ...}``.

    What comes out opens with ``torch.load(weights_only=True)``: no class of anybody's is pickled.
    """
    if isinstance(value, torch.Tensor):
        return copy(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_builtins(getattr(value, f.name), copy) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_builtins(child, copy) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_builtins(child, copy) for child in value]
    return {"__repr__": f"{type(value).__module__}.{type(value).__qualname__}"}
