"""Fingerprints in the place of copies: what a hook sees is hashed there and then, or copied and hashed beside training.

The hash is a SHA-256, which takes ten times as long as copying: so large tensors are copied into memory that is used
again and again, as fresh memory would cost as much as the hash, and threads hash them while training goes on. Of what
lies on a device the copy is made there, and the host waits for nothing.
"""

from __future__ import annotations

import os
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from typing import Any

import torch

from nest_ssl.record.observers.copies import Copies, remote, same_bits
from nest_ssl.recording.calls import Producer
from nest_ssl.recording.digests import Fingerprint, fingerprint

SMALL = 1 << 15  # bytes up to which handing a tensor to a thread costs more than hashing it
ROOM = 1 << 28  # bytes of copies that wait to be hashed; what finds no room is hashed at once

Hashed = Fingerprint | Future[Fingerprint]
Submit = Callable[[Callable[[], Fingerprint]], Future[Fingerprint]]


class Hashing:
    """Hashes tensors, large ones beside training.

    Args:
        submit: gives a job to a thread; of what lies on a device it reads what is there now.
        room: bytes that copies may take.
    """

    def __init__(self, submit: Submit, room: int = ROOM) -> None:
        self._submit, self._room, self._lock = submit, room if (os.cpu_count() or 1) > 1 else 0, Lock()
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)  # by size, a power of two

    def of(self, tensor: torch.Tensor) -> Hashed:
        """The fingerprint of what `tensor` holds now, or what will be it; nothing that is done to it later counts."""
        size = tensor.numel() * tensor.itemsize
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.is_quantized or (size <= SMALL and not remote(tensor)):
            return fingerprint(tensor)
        memory = self._memory(1 << (size - 1).bit_length(), tensor.device)
        if memory is None:
            return fingerprint(tensor)
        copied = memory[:size].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())

        def hashed() -> Fingerprint:
            try:
                return fingerprint(copied)
            finally:
                with self._lock:
                    self._free[memory.numel()].append(memory)

        return self._submit(hashed)

    def _memory(self, size: int, device: torch.device) -> torch.Tensor | None:
        """So many bytes, used before where there are any that are free; None where there is no room."""
        with self._lock:
            if self._free[size]:
                return self._free[size].pop()
            while size > self._room and any(self._free.values()):  # of another size than is asked for now
                other = max(number for number, free in self._free.items() if free)
                self._free[other].pop()
                self._room += other
            if size > self._room:
                return None
            self._room -= size
        with torch.inference_mode(False):  # it is used again outside of that
            return torch.empty(size, dtype=torch.uint8, device=device)


class Digests(Copies):
    """As `Copies`, but each tensor is its `Fingerprint`, or what will be it.

    A tensor that is seen again is not read again, unless torch says that it was edited: an edit through ``.data`` is
    not noticed until the tensor goes through an operator. Edits in inference mode are not counted: a large tensor of it
    is held against a copy, which costs a tenth of the hash.
    """

    def __init__(self, hashing: Hashing) -> None:
        super().__init__()
        self._hashing = hashing
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], int, Hashed]] = {}
        self._spare = ROOM  # bytes that copies to compare with may still take in this step

    def copy(self, tensor: torch.Tensor) -> Any:
        seen, kept = self._made.get(id(tensor)), self._kept.get(id(tensor))
        version = -1 if tensor.is_inference() else tensor._version
        counted = version >= 0 or (kept is not None and kept[0]() is tensor and _holds(tensor, kept[1]))
        if seen is not None and seen[0]() is tensor and seen[1] == version and counted:
            return seen[2]
        made = self._hashing.of(tensor)
        self._made[id(tensor)] = weakref.ref(tensor), version, made
        size = tensor.numel() * tensor.itemsize
        self._kept.pop(id(tensor), None)
        if version < 0 and SMALL < size <= self._spare and not remote(tensor) and tensor.layout is torch.strided:
            self._spare -= size
            self._kept[id(tensor)] = self._made[id(tensor)][0], tensor.clone()
        return made

    def returned(self, kept: Any, call: int) -> None:
        """Who made what is not noted."""

    def producers(self, kept: dict[str, Any]) -> dict[str, Producer]:
        return {}


def _holds(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether its bits are those of its copy; what torch cannot compare is hashed again."""
    try:
        return same_bits(tensor, kept)
    except RuntimeError:
        return False
