"""What a manifest holds and the batches it gives, beside those of the loaders themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.trainer.connectors.data_connector import _get_distributed_sampler
from lightning.pytorch.trainer.states import RunningStage

from nest_ssl.base.errors import UserError
from nest_ssl.cli.data import main as data
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.inspection import histogram, inspect, plan, shares_of
from nest_ssl.data.loader import build_dataloader


def test_the_batches_are_the_loaders(section: dict[str, Any]) -> None:
    dataset = read(Dataset, section)
    loader = build_dataloader(dataset, 16_000)
    assert loader is not None
    (found,) = inspect(dataset, 1, 0).plans
    computed = [batch.audio.numel() / 16_000 for batch in loader]
    assert found.batches == len(computed) and found.padded == pytest.approx(sum(computed))
    assert found.worst == ([0, 1], pytest.approx(max(computed)))
    assert found.padding == pytest.approx(1 - 4.7 / 5.2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_each_rank_gets_what_lightning_gives_it(section: dict[str, Any], shuffle: bool) -> None:
    """The sampler that Lightning makes for each of two processes."""
    loader = build_dataloader(read(Dataset, {**section, "shuffle": shuffle}), 16_000)
    settings: dict[str, Any] = {"mode": RunningStage.TRAINING, "num_replicas": 2, "seed": 7, "overfit_batches": 0}
    for rank in range(2):
        sampler = _get_distributed_sampler(loader, shuffle, rank=rank, **settings)
        assert shares_of(3, rank, 2, shuffle, 7).tolist() == list(sampler)


def test_the_worst_batch_and_the_last() -> None:
    seconds = np.array([1.0, 9.0, 2.0, 2.0, 8.0])
    whole = plan(seconds, range(5), 2, drop_last=False)
    assert (whole.batches, whole.padded, whole.worst) == (3, 30.0, ([0, 1], 18.0))
    assert plan(seconds, range(5), 2, drop_last=True).batches == 2
    assert plan(seconds, [4], 2, drop_last=True).batches == 0


def test_the_histogram_counts_everything() -> None:
    rows = histogram(np.array([1.0, 1.1, 3.0]), bars=2)
    assert [row.split() for row in rows] == [
        ["1.00", "to", "2.00", "s", "2", "#" * 40],
        ["2.00", "to", "3.00", "s", "1", "#" * 20],
    ]


def test_duplicates_and_unreadable_files(
    tmp_path: Path, wav: Callable[..., str], manifest: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.wav").write_text("not audio")
    lines = [{"audio_filepath": wav("a.wav", 2.0), "duration": 2.0}, {"audio_filepath": "a.wav", "duration": 2.0},
             {"audio_filepath": "a.wav"}, {"audio_filepath": "bad.wav", "duration": 1.0}]  # fmt: skip
    path = manifest(*lines)
    assert data(["inspect", path, "--batch-size", "2"]) == 1
    said = capsys.readouterr().out
    assert "4 utterances" in said and "duplicates: 1" in said and "2 times" in said and "line 1)" in said
    assert "unreadable: 1 of 3 whose headers were read" in said and "bad.wav" in said and "2 batches an epoch" in said
    assert data(["inspect", path, "--sample", "2", "--show", "0"]) == 1  # every second
    said = capsys.readouterr().out
    assert "unreadable: 1 of 2 whose headers were read" in said and "bad.wav" not in said
    with pytest.raises(UserError, match="no number of files: --show -1. Give 0 or more"):
        data(["inspect", path, "--show", "-1"])
    manifest(*lines[:3])
    assert data(["inspect", path, "--ranks", "2", "--shuffle"]) == 0
    assert "rank 1: 1 batches an epoch" in capsys.readouterr().out
