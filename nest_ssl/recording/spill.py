"""Tensors on their way to the disk while more of the same file come: in memory are those that wait, and no more.

They are written in pieces into the file that they belong to, whose other content follows at its end, and are hashed
beside that. Then each is the same object still, but its bytes are those of the file, mapped: pages that are read again
only where they are compared, and that the system drops when it needs memory.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nest_ssl.base.errors import write_errors
from nest_ssl.base.tensor_writer import TensorFile, takes

PIECE = 1 << 26  # bytes that are handed over together, and mapped together: a system has few maps for a process
ROOM = 1 << 30  # bytes that may wait to be written and hashed however little memory is free; whoever brings more waits
Digests = dict[int, tuple[Future[list[str]], int]]  # by a tensor's id: digests of several, and the place among them
Write = Callable[[Callable[[], list[int]]], Future[list[int]]]


class _Piece(NamedTuple):
    tensors: list[torch.Tensor]
    bytes: int
    written: Future[list[int]]  # the place of each in the file
    awaited: set[Future[Any]]  # that, and the digests


class Spill:
    """Takes tensors of one file.

    Args:
        path: of the file, which is made when there is enough for a piece of it.
        where: what to call it in an error.
        write: has a job done in another thread, one after the other.
        hashed: has tensors hashed by others.
        room: bytes that may wait, where that is more than `ROOM`.
    """

    def __init__(
        self,
        path: Path,
        where: str,
        write: Write,
        hashed: Callable[[Mapping[int, torch.Tensor]], Digests],
        room: int = 0,
    ) -> None:
        self._file, self._where, self._write, self._hashed = TensorFile(path), where, write, hashed
        self._room = max(ROOM, room)
        self._piece: list[torch.Tensor] = []
        self._size = self._held = 0  # bytes of the piece; of what waits
        self._waiting: deque[_Piece] = deque()
        self._added: list[torch.Tensor] = []
        self.digests: Digests = {}

    def put(self, tensor: torch.Tensor) -> None:
        """From here on nothing may change `tensor`, and no other thread but this one may read it.

        What is not plain, dense and on the CPU stays in memory.

        Raises:
            UserError: some of what was put could not be written.
        """
        if not takes(tensor) or tensor.is_inference() or not tensor.untyped_storage().nbytes():
            return
        self._piece.append(tensor)
        self._size += tensor.untyped_storage().nbytes()
        if self._size >= PIECE:
            self._hand_over()
        while self._waiting and (self._held > self._room or all(each.done() for each in self._waiting[0].awaited)):
            self._let_go(self._waiting[0])

    def end(self, value: object) -> str:
        """Write the file's content to its end, of which what was put is a part; returns the SHA-256 of the file.

        Raises:
            UserError: some of what was put could not be written.
            UnfitError, OSError: as of `TensorFile`.
        """
        for piece in self._waiting:
            piece.written.result()
        return self._file.end(value, self._added)

    def drop(self) -> None:
        """The file goes."""
        wait([piece.written for piece in self._waiting])
        self._file.path.unlink(missing_ok=True)

    def _hand_over(self) -> None:
        storages = [tensor.untyped_storage() for tensor in self._piece]  # now: the tensors' own will be others

        def job() -> list[int]:
            with write_errors(self._where):
                self._file.path.parent.mkdir(parents=True, exist_ok=True)
                places = self._file.add(storages)
            storages.clear()  # what is written holds no memory
            return places

        digests = self._hashed({id(tensor): tensor for tensor in self._piece})
        written = self._write(job)
        self._waiting.append(
            _Piece(self._piece, self._size, written, {written, *(each for each, _ in digests.values())})
        )
        self.digests |= digests
        self._added += self._piece
        self._held += self._size
        self._piece, self._size = [], 0

    def _let_go(self, piece: _Piece) -> None:
        """The oldest piece's tensors lie in the file from now on."""
        wait(piece.awaited)
        places = piece.written.result()
        begin = places[0] - places[0] % mmap.ALLOCATIONGRANULARITY
        size = places[-1] + piece.tensors[-1].untyped_storage().nbytes() - begin
        with write_errors(self._where), self._file.path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY, offset=begin)
        for tensor, place in zip(piece.tensors, places, strict=True):
            count, layout = tensor.untyped_storage().nbytes(), (tensor.storage_offset(), tensor.size(), tensor.stride())
            content = torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=place - begin).untyped_storage()
            tensor.data = torch.empty(0, dtype=tensor.dtype, device="cpu").set_(content, *layout)
        self._waiting.popleft()
        self._held -= piece.bytes
