"""Tensors, wherever they lie, in files as `torch.save` writes them of what lies on the CPU.

What `tensor_writer` takes it writes, which is faster; the rest torch does. Of what lies on a device one storage at a
time comes over, through pinned memory: no second copy of the whole is made.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.serialization import config

from nest_ssl.base.files import sha256_of
from nest_ssl.base.tensor_writer import UnfitError, write_tensors
from nest_ssl.recording.spill import Spill

R = TypeVar("R")


class Pickler(pickle.Pickler):
    """As pickle's, but of every storage it says that it lies on the CPU. `torch.save` takes it out of this module."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        found = self.persistent_id  # of torch's class, made of this one, which returns what stands for a storage

        def on_cpu(value: Any) -> Any:
            storage = found(value)
            return storage if storage is None else (*storage[:3], "cpu", *storage[4:])

        self.persistent_id = on_cpu  # type: ignore[method-assign]
        super().__init__(*arguments, **settings)


def save(value: Any, path: Path, spill: Spill | None = None) -> str:
    """Write tensors and builtins that `recording.tensors.storable` made; returns the SHA-256 of the file.

    Args:
        spill: what was put there of the file already.

    Raises:
        OSError, RuntimeError: as `torch.save`.
    """
    with suppress(UnfitError):
        return spill.end(value) if spill else write_tensors(path, value)
    path.unlink(missing_ok=True)  # not written over: tensors of `value` may lie in it
    pinned: Any = config.save
    before, pinned.use_pinned_memory_for_d2h = pinned.use_pinned_memory_for_d2h, True
    try:
        torch.save(value, path, pickle_module=sys.modules[__name__])
    finally:
        pinned.use_pinned_memory_for_d2h = before
    return sha256_of(path)


def after_what_is_queued(job: Callable[[], R]) -> Callable[[], R]:
    """`job`, for another thread: what it reads of a device is as it is now, and nothing queued later waits for it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return job
    device = torch.cuda.current_device()
    reached = torch.cuda.current_stream(device).record_event()

    def beside() -> R:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
            torch.cuda.current_stream(device).wait_event(reached)
            return job()

    return beside
