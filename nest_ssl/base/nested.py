"""Nested values (tensors in lists and dicts) as recordings keep them: copied, reduced to builtins, addressed by path.

A path joins list indices and dict keys with dots; a bare tensor has the empty path. `("a", {"x": t})` holds `1.x`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

Leaf = torch.Tensor | int | float | bool | str | None


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested value with its path, in order."""
    children = _children(value)
    if children is None:
        yield path, value
        return
    for key, child in children:
        yield from leaves(child, f"{path}.{key}" if path else str(key))


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a nested value with its path, in order."""
    return ((p, leaf) for p, leaf in leaves(value, path) if isinstance(leaf, torch.Tensor))


def to_builtins(value: Any, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
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


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    return None
