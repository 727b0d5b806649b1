"""Which of several processes this is, as `torch.distributed` has it, and where it records."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nest_ssl.recording import layout as files
from nest_ssl.recording.ranks import write_ranks
from nest_ssl.recording.writer import RecordingWriter, check_target


def processes() -> int:
    """How many train together."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


@contextmanager
def rank_writer(out: Path | str, overwrite: bool) -> Iterator[RecordingWriter]:
    """A writer into `out`; of several processes each has its own below it, and the first completes the whole.

    An earlier recording there is gone from the moment on when the first of them begins.

    Raises:
        UserError: see `writer.reserved`.
    """
    number = processes()
    if number == 1:
        with RecordingWriter(out, overwrite) as writer:
            yield writer
        return
    rank, folder = torch.distributed.get_rank(), Path(out)
    if rank == 0 and folder.exists():
        check_target(folder, overwrite)
        shutil.rmtree(folder)
    torch.distributed.barrier()
    with RecordingWriter(folder / files.rank_folder(rank), overwrite, rank) as writer:
        yield writer
    torch.distributed.barrier()
    if rank == 0:
        write_ranks(folder, number)
