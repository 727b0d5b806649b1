"""Tensors as a recording holds them: plain, dense, on the CPU, in lists and dicts of builtins; and their digests."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch

from nest_ssl.base.nested import DEEPEST, tensors, to_builtins

ELSEWHERE = "a tensor that is not on the CPU"


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's raw bytes in row-major order."""
    flat = row_major(tensor.detach().cpu())
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


class Stored(NamedTuple):
    """Where a tensor was read: what was read at one place of two files of the same bytes has the same bits."""

    sha256: str  # of the whole file, which was checked
    place: str


def mark_as_stored(value: Any, sha256: str) -> None:
    """Note of every tensor in what was read from a file where it stands there; a view or a copy of it says nothing."""
    for place, tensor in tensors(value):
        tensor.stored = Stored(sha256, place)  # type: ignore[attr-defined]


def stored_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both are known to have the same bits without a look at them."""
    place = getattr(one, "stored", None)
    return place is not None and place == getattr(other, "stored", None)


def row_major(tensor: torch.Tensor) -> torch.Tensor:
    """Its elements in their order, each next to the last, so that they can be seen as bytes."""
    flat = tensor.contiguous().reshape(-1)
    # One element may keep any stride, and torch sees no bytes in it then.
    return flat.clone(memory_format=torch.contiguous_format) if flat.numel() == 1 else flat


def describe_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    """Shape and dtype, e.g. ``{"shape": [2, 3], "dtype": "float32"}``."""
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def describe_tensors(value: Any, digests: bool = True) -> dict[str, dict[str, Any]]:
    """Of every tensor in a nested value, by its path: shape, dtype and, if asked for, digest."""
    described: dict[int, dict[str, Any]] = {}  # one tensor may stand in many places: hash it once
    found = dict(tensors(value))
    for tensor in found.values():
        if id(tensor) not in described:
            digest = {"digest": tensor_digest(tensor)} if digests else {}
            described[id(tensor)] = {**describe_tensor(tensor), **digest}
    return {path: described[id(tensor)] for path, tensor in found.items()}


def storable(value: Any) -> Any:
    """The same nesting in builtins, its tensors dense and no larger than their storage; plain ones stay themselves,
    on a device too."""
    made: dict[int, torch.Tensor] = {}  # one tensor in many places stays one: it is stored once, and shows who made it

    def plain(tensor: torch.Tensor) -> torch.Tensor:
        if _fault(tensor) in (None, ELSEWHERE):
            return tensor
        if id(tensor) not in made:
            dense = tensor.detach().cpu()
            dense = dense.dequantize() if dense.is_quantized else dense
            dense = dense.to_dense() if dense.layout is not torch.strided else dense
            made[id(tensor)] = dense.as_subclass(torch.Tensor).resolve_conj().resolve_neg().clone().contiguous()
        return made[id(tensor)]

    return to_builtins(value, plain)


def check_storable(value: Any, budget: int) -> None:
    """Refuse what `storable` never makes.

    Args:
        budget: how many values there may be, every mention of a shared one counted: no more than bytes of their file.

    Raises:
        ValueError: names the place.
    """
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        path, item, depth = waiting.pop()
        budget -= 1
        fault = None
        if budget < 0 or depth > DEEPEST:
            fault = "nested without end"
        elif type(item) is dict:
            if not all(type(key) is str for key in item):
                fault = "a key that is no text"
            waiting += [(f"{path}.{key}" if path else key, child, depth + 1) for key, child in item.items()]
        elif type(item) in (list, tuple):
            waiting += [(f"{path}.{i}" if path else str(i), child, depth + 1) for i, child in enumerate(item)]
        elif isinstance(item, torch.Tensor):
            fault = _fault(item)
        elif item is not None and type(item) not in (bool, int, float, str):
            fault = f"a {type(item).__name__}"
        if fault:
            raise ValueError(f"{path or 'its content'}: {fault}")


def _fault(tensor: torch.Tensor) -> str | None:
    if type(tensor) is not torch.Tensor or tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        return "a tensor that is not plain"
    if tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided:
        return "a tensor that is not dense"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return "a tensor larger than its storage"
    return None if tensor.device.type == "cpu" else ELSEWHERE
