"""Which of several processes this is, as `torch.distributed` has it, and where it records.

All record into one folder beside the target, which takes the target's place when the last is done. Between the first
step and the last one of them may fail while the others wait for it, so what became of each stands in a file of its own:
whoever comes to the end reads there which failed, and one that ended without a word has let go of its lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import lock, replace_folder, write_atomically
from nest_ssl.recording.layout import rank_folder
from nest_ssl.recording.ranks import write_ranks
from nest_ssl.recording.writer import RecordingWriter, reserved

POLL_S = 0.1
GRACE_S = 10.0  # in which the others may read which rank failed, before the first removes what was written


def processes() -> int:
    """How many train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


@contextmanager
def rank_writer(out: Path | str, overwrite: bool) -> Iterator[RecordingWriter]:
    """A writer into `out`; of several processes each has its own below it, and the first completes the whole.

    An earlier recording there stays until all of them are done.

    Raises:
        UserError: see `writer.reserved`; or another process failed, and which.
    """
    number = processes()
    if number == 1:
        with RecordingWriter(out, overwrite) as writer:
            yield writer
        return
    with ExitStack() as held:
        together = _meet(held, Path(out).absolute(), overwrite)
        try:
            with RecordingWriter(together.folder / rank_folder(together.rank), rank=together.rank) as writer:
                yield writer
            together.done()
        except BaseException as error:
            together.leave(error)
            failed = together.failed() if isinstance(error, RuntimeError) else None  # as of a connection that broke
            if failed:
                raise failed from error
            raise
        together.complete(Path(out).absolute())


def _meet(held: ExitStack, target: Path, overwrite: bool) -> _Together:
    """All that record: the first makes the folder, and what keeps it from that is raised by all."""
    rank = torch.distributed.get_rank()
    said: list[Any] = [None]
    if rank == 0:
        try:
            said = [held.enter_context(reserved(target, overwrite))]
        except UserError as error:
            said = [error]
    torch.distributed.broadcast_object_list(said)
    if isinstance(said[0], UserError):
        raise said[0]
    together = _Together(said[0], rank, torch.distributed.get_world_size())
    held.enter_context(lock(together.here(rank), "recording"))
    torch.distributed.barrier()  # each has its lock
    return together


@dataclass(frozen=True)
class _Together:
    """Processes that record into one folder; this one is number `rank` of `world_size`."""

    folder: Path
    rank: int
    world_size: int

    def here(self, rank: int) -> Path:
        """The lock that a rank holds while it lives."""
        return self.folder / f"here_{rank}.lock"

    def end(self, rank: int) -> Path:
        """What became of a rank: empty where all is well."""
        return self.folder / f"end_{rank}.txt"

    def done(self) -> None:
        """This rank is; wait for the others.

        Raises:
            UserError: one of them failed.
        """
        with write_errors(str(self.folder)):
            write_atomically(self.end(self.rank), "")
        while any(not self.end(rank).exists() for rank in range(self.world_size)):
            time.sleep(POLL_S)
            if failed := self.failed():
                raise failed
        if failed := self.failed():
            raise failed
        torch.distributed.barrier()  # each has seen that: what says so may go

    def failed(self) -> UserError | None:
        """Of another rank, as far as it is known by now."""
        for rank in (one for one in range(self.world_size) if one != self.rank):
            which, fix = f"rank {rank} of {self.world_size}", "Nothing was recorded, and an earlier recording stays."
            gone = not self.end(rank).exists() and self._is_gone(rank)
            if self.end(rank).exists() and (why := self.end(rank).read_text("utf-8")):
                return UserError(f"{which} failed", why, fix)
            if gone:
                return UserError(f"{which} ended before it was done", str(self.folder.parent), fix)
        return None

    def _is_gone(self, rank: int) -> bool:
        try:
            with lock(self.here(rank), "looking for it"):
                return True
        except UserError:
            return False

    def leave(self, error: BaseException) -> None:
        """Say what happened, and, before the first takes the folder away, let the others read it."""
        lines = str(error).splitlines()
        with suppress(OSError):  # as on a full disk: `error` says it, and the others see that this rank is gone
            said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
            write_atomically(self.end(self.rank), said)
        deadline = time.monotonic() + (GRACE_S if self.rank == 0 else 0.0)
        while time.monotonic() < deadline and not all(
            self.end(rank).read_text("utf-8") if self.end(rank).exists() else self._is_gone(rank)
            for rank in range(1, self.world_size)
        ):
            time.sleep(POLL_S)

    def complete(self, target: Path) -> None:
        """Put the whole into its place, as the first does; the others wait for what became of it.

        Raises:
            UserError: it cannot be written, or the first was killed while it did that.
        """
        said: list[Any] = [None]
        if self.rank == 0:
            try:
                self._put(target)
            except UserError as error:
                said = [error]
        try:
            torch.distributed.broadcast_object_list(said)
        except RuntimeError as error:  # as of a connection that broke
            what = f"rank 0 of {self.world_size} ended while it put the recording into its place"
            raise UserError(what, str(target), "If it is not whole, record again.") from error
        if isinstance(said[0], UserError):
            raise said[0]

    def _put(self, target: Path) -> None:
        write_ranks(self.folder, self.world_size)
        with write_errors(str(target)):
            for rank in range(self.world_size):
                self.here(rank).unlink(missing_ok=True)
                self.end(rank).unlink()
            replace_folder(self.folder, target)
