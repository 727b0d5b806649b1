"""What we use of torch without its promise is still where it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from nest_ssl.data.torch_internals import indices_of, raised_in_a_dataset

with_workers = pytest.mark.filterwarnings("ignore")


class Numbers(Dataset[torch.Tensor]):
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return torch.tensor(index)


def test_indices_are_taken_without_reading() -> None:
    batches: Any = iter(DataLoader(Numbers(), batch_size=2))
    indices = indices_of(batches)
    assert indices is not None and next(indices) == [0, 1]
    assert [batch.tolist() for batch in batches] == [[2, 3], [4, 5]]


@with_workers
def test_workers_have_taken_theirs() -> None:
    batches: Any = iter(DataLoader(Numbers(), batch_size=2, num_workers=1))
    assert indices_of(batches) is None
    assert len(list(batches)) == 3


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=with_workers)])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("bad")])
def test_where_an_error_came_up(error: Exception, workers: int) -> None:
    batches: Any = iter(DataLoader(Numbers(error), num_workers=workers))
    with pytest.raises(type(error)) as raised:
        next(batches)
    if workers:
        batches._shutdown_workers()  # left to the garbage collector, it takes 5 s
    assert raised_in_a_dataset(raised.value)
    with pytest.raises(OSError, match="elsewhere") as raised:
        raise OSError(28, "elsewhere")
    assert not raised_in_a_dataset(raised.value)
