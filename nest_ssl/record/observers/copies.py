"""Copies of what hooks see: taken at once, for the next in-place edit overwrites it, and each content once."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from nest_ssl.base.nested import tensors, to_builtins
from nest_ssl.recording.calls import Producer

_INTEGER_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
_NOTHING = torch.empty(0)


class Copies:
    """Keeps values as builtins with CPU tensors, and remembers which call returned which of them.

    One module's output is the next one's input, so a tensor that is seen again is kept again only if its bits have
    changed since. They are compared each time: an address is reused after a tensor dies, and an edit through ``.data``
    leaves no trace in a tensor's version. Comparing costs less than copying, which also has to find the memory.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
        self._returned: dict[int, tuple[torch.Tensor, Producer]] = {}

    def keep(self, value: Any) -> Any:
        """`value` as nested builtins, its tensors copied; those that hold what was kept before are the same objects."""
        return to_builtins(value, self.copy)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        seen = self._kept.get(id(tensor))
        if seen is not None and seen[0]() is tensor and same_bits(tensor, seen[1]):
            return seen[1]
        copied = copy_to_cpu(tensor)
        self._kept[id(tensor)] = weakref.ref(tensor), copied
        return copied

    def returned(self, kept: Any, call: int) -> None:
        """Note that `kept`, from `keep`, is what the call with index `call` returned."""
        for path, tensor in tensors(kept):
            self._returned[id(tensor)] = tensor, (call, path)  # with the tensor, or its address could be reused

    def producers(self, kept: dict[str, Any]) -> dict[str, Producer]:
        """For each tensor in `kept`, by its path, the call that returned it last, if any did."""
        return {path: self._returned[id(t)][1] for path, t in tensors(kept) if id(t) in self._returned}


class Unkept(Copies):
    """Nothing of what hooks see: which calls there were is known, and no more."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return _NOTHING

    def returned(self, kept: Any, call: int) -> None:
        """Who made what is not noted."""


def copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A detached copy that later in-place edits do not reach."""
    return tensor.detach().to("cpu", copy=True)


def same_bits(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether `tensor` holds what `kept` does, wherever they live; NaN equals itself, and -0 is not 0."""
    if tensor.shape != kept.shape or tensor.dtype != kept.dtype or tensor.layout != torch.strided:
        return False
    here, kept = tensor.detach(), kept.detach()
    if here.device != kept.device:
        here, kept = here.cpu(), kept.cpu()
    if here.dtype.is_complex:
        here, kept = torch.view_as_real(here.resolve_conj()), torch.view_as_real(kept.resolve_conj())
    if here.dtype.is_floating_point:
        here, kept = (value.view(_INTEGER_OF[value.dtype.itemsize]) for value in (here, kept))
    return torch.equal(here, kept)
