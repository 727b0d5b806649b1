"""Fingerprints in the place of copies: what a hook sees is hashed there and then, or copied and hashed beside training.

On a CPU large tensors are copied into memory that is used again and again, as fresh memory would cost more than the
hash, and threads hash them while training goes on. On a device floats are copied one behind the other into memory that
is hashed there as a whole when it is full, by some twenty operators: one by one, launching them would take longer than
training. The host waits for nothing. What else lies there is copied there, and hashed by the threads.
"""

from __future__ import annotations

import os
import weakref
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from threading import Lock
from typing import Any

import torch

from nest_ssl.record.observers.copies import Answer, Copies, remote, same_bits
from nest_ssl.recording.calls import Producer
from nest_ssl.recording.digests import Fingerprint, fingerprint, of_rows
from nest_ssl.recording.row_sums import FILL, ROW, WORDS, facts_by_operators, sums_by_operators
from nest_ssl.recording.tensors import describe_tensor, row_major

SMALL = 1 << 15  # bytes up to which handing a tensor to a thread costs more than hashing it
ROOM = 1 << 28  # bytes of copies that wait to be hashed; what finds no room is hashed at once
STAGE = 1 << 26  # bytes that are hashed together on a device, which takes five times as many beside them
STAGED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Hashed = Fingerprint | Future[Fingerprint]
Submit = Callable[[Callable[[], Fingerprint]], Future[Fingerprint]]
Rows = Future[tuple[Answer, Answer]]  # sums and facts of all rows of a stage


class Staged(Future[Fingerprint]):
    """Of a tensor that lies on a stage, or on several one after the other; worked out by the thread that asks first."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self._described, self.rows = describe_tensor(tensor), list[tuple[Rows, slice]]()
        self.filled = 0  # elements behind the end

    def result(self, timeout: float | None = None) -> Fingerprint:
        if not self.done():
            parts = [[answer.wait()[own].numpy() for answer in rows.result()] for rows, own in self.rows]
            found = [(sums, (f[:, 0].min(), f[:, 1].max(), f[:, 2].sum(), f[:, 3].sum())) for sums, f in parts]
            self.set_result(of_rows(self._described, found, self.filled))
            self.rows.clear()
        return super().result(timeout)


class Stage:
    """Memory on a device into which tensors are copied row by row, and hashed together.

    Args:
        dtype, device: of what is copied.
        stream: in which it is, and hashed too, whichever is the current one then; None where there are none.
        size: bytes.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, stream: torch.cuda.Stream | None, size: int) -> None:
        with torch.inference_mode(False):  # it is used again outside of that
            self._memory = torch.full((size,), FILL, dtype=torch.uint8, device=device).view(dtype)
        self._stream, self._used, self._rows = stream, 0, Rows()

    def of(self, tensor: torch.Tensor) -> Staged:
        """The fingerprint that will be of what a tensor of floats holds now."""
        plain = tensor.detach().resolve_conj().resolve_neg()
        flat = row_major(torch.view_as_real(plain) if plain.is_complex() else plain)
        made, done, a_row = Staged(tensor), 0, ROW // flat.itemsize
        while done < len(flat):
            if self._used == len(self._memory):
                self.flush()
            part = flat[done : done + len(self._memory) - self._used]
            self._memory[self._used : self._used + len(part)].copy_(part)
            first, number = self._used // a_row, -(-len(part) // a_row)
            made.rows.append((self._rows, slice(first, first + number)))
            self._used, done = self._used + number * a_row, done + len(part)
            made.filled = number * a_row - len(part)  # none but behind the last part
        return made

    def flush(self) -> None:
        """Hash what lies there. All of the memory, however much of it is used: sums of floats have one order then."""
        if self._used == 0:
            return
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            rows = self._memory.view(-1, ROW // self._memory.itemsize)
            sums = sums_by_operators(self._memory.view(torch.int16).view(-1, WORDS))
            self._rows.set_result((Answer(sums), Answer(facts_by_operators(rows))))
            self._memory.view(torch.uint8).fill_(FILL)
        self._used, self._rows = 0, Rows()


class Hashing:
    """Hashes tensors, large ones beside training.

    Args:
        submit: gives a job to a thread; of what lies on a device it reads what is there now.
        room: bytes that copies may take.
        stage: bytes that are hashed together on a device.
    """

    def __init__(self, submit: Submit, room: int = ROOM, stage: int = STAGE) -> None:
        self._submit, self._room, self._lock = submit, room if (os.cpu_count() or 1) > 1 else 0, Lock()
        self._stage = stage
        self.stages: dict[Any, Stage] = {}  # one for each stream, for what is queued in one has an order
        self._free: dict[int, list[torch.Tensor]] = defaultdict(list)  # by size, a power of two

    def of(self, tensor: torch.Tensor) -> Hashed:
        """The fingerprint of what `tensor` holds now, or what will be it; nothing that is done to it later counts."""
        size = tensor.numel() * tensor.itemsize
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.is_quantized or (size <= SMALL and not remote(tensor)):
            return fingerprint(tensor)
        if remote(tensor) and tensor.dtype.to_real() in STAGED:
            stream = torch.cuda.current_stream(tensor.device) if tensor.is_cuda else None
            place = tensor.dtype.to_real(), tensor.device, stream
            if place not in self.stages:
                self.stages[place] = Stage(*place, self._stage)
            return self.stages[place].of(tensor)
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
