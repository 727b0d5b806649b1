"""The names that torch keeps to itself and we use, all here; as they are in torch 2.4 to 2.13.

`tests/data/test_torch_internals.py` fails where torch has moved one. Nothing is wrong then with what is trained: each
function says what happens without.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

from torch.utils.data import _utils, dataloader

FETCHING = ("data", "_utils", "fetch.py")  # where torch takes items out of a dataset, and collates them
WORKER_LOOP: Callable[..., None] = _utils.worker._worker_loop  # what a loader's worker process runs


def indices_of(batches: Iterator[Any]) -> Iterator[list[int]] | None:
    """The iterator from which a pass without workers takes the indices of its batches.

    None with workers, and where torch has moved it: batches to be left out are then decoded, which takes longer.
    """
    single = getattr(dataloader, "_SingleProcessDataLoaderIter", ())
    return getattr(batches, "_sampler_iter", None) if isinstance(batches, single) else None


def raised_in_a_dataset(error: BaseException) -> bool:
    """Whether `error` came up while a dataset was read, here or in a worker (which sends its traceback as text).

    False where torch has moved the place: the error is then reported as it is.
    """
    files = [PurePath(frame.filename).parts[-3:] for frame in traceback.extract_tb(error.__traceback__)]
    return FETCHING in files or any("/".join(FETCHING) in str(part).replace("\\", "/") for part in error.args)


def swap_worker_loop(loop: Callable[..., None]) -> Callable[..., None]:
    """Have workers that begin from now on run `loop`, which takes what `WORKER_LOOP` takes; returns what they ran.

    Without effect where torch looks elsewhere: workers are then not shielded from signals.
    """
    before: Callable[..., None] = _utils.worker._worker_loop
    _utils.worker._worker_loop = loop
    return before
