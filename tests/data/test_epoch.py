"""An epoch taken up where it was left gives the batches that it would have given, with and without bad audio."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.data.loader import AudioNoiseLoader, build_dataloader
from nest_ssl.data.skipping import SkippedAudio

WORKERS = [0, pytest.param(2, marks=pytest.mark.filterwarnings("ignore"))]  # fork, and more workers than cores


@pytest.fixture
def loader(section: dict[str, Any], wav: Callable[..., str], manifest: Callable[..., str],
           tmp_path: Path) -> Callable[..., AudioNoiseLoader]:  # fmt: skip
    """`loader("cd", workers=0)` shuffles five utterances, of which c.wav and d.wav cannot be used; one a batch."""
    lines = [{"audio_filepath": wav(f"{name}.wav", 1.2 + n / 10, n)} for n, name in enumerate("abcde")]
    noise = manifest({"audio_filepath": wav("n.wav", 4.0, 9), "duration": 4.0}, name="noise.json")
    settings = {**section, "manifest_filepath": manifest(*lines), "noise_manifest": noise, "batch_size": 1,
                "shuffle": True}  # fmt: skip

    def build(spoilt: str, workers: int) -> AudioNoiseLoader:
        for name in spoilt:
            (tmp_path / f"{name}.wav").write_text("not audio")
        skipped = SkippedAudio() if spoilt else None
        built = build_dataloader(
            read(Dataset, {**settings, "num_workers": workers}), 16_000, skipped=skipped, training=True
        )
        assert built is not None
        return built

    return build


def seed(value: int) -> None:
    torch.manual_seed(value)
    np.random.seed(value)
    random.seed(value)


def restore(states: tuple[Any, Any]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])


def train(batch: AudioNoiseBatch) -> list[Any]:
    """What a model does with a batch: it draws."""
    assert batch.audio is not None and batch.noise is not None
    return [batch.audio.tolist(), batch.noise.tolist(), torch.rand(3).tolist()]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("spoilt", ["", "cd"])
def test_every_place_of_an_epoch(loader: Callable[..., AudioNoiseLoader], spoilt: str, workers: int) -> None:
    seed(1)
    whole = loader(spoilt, workers)
    seen, places = [], []
    for _ in range(2):
        for batch in whole:
            seen.append(train(batch))
            places.append((whole.state_dict(), (torch.get_rng_state(), np.random.get_state())))
    assert len(seen) == 10, "each epoch has its five batches"
    assert not spoilt or any(0 < state["earlier"] < state["batches"] for state, _ in places), "an epoch of two passes"
    for number, (state, states) in enumerate(places):
        seed(99)
        resumed = loader(spoilt, workers)
        resumed.load_state_dict(state)
        batches = iter(resumed)
        again = resumed.state_dict()
        assert torch.equal(again.pop("generator"), state["generator"]) and again.items() < state.items()
        restore(states)
        left = [train(batch) for batch in batches]
        if number < 5:
            left += [train(batch) for batch in resumed]
        assert left == seen[number + 1 :]


def test_before_the_first_batch(loader: Callable[..., AudioNoiseLoader]) -> None:
    built = loader("", 0)
    seed(1)
    state = built.state_dict()
    wanted = [train(batch) for batch in built]
    other = loader("", 0)
    other.load_state_dict(state)
    seed(1)
    assert [train(batch) for batch in other] == wanted


def test_data_that_shrank(loader: Callable[..., AudioNoiseLoader]) -> None:
    built = loader("", 0)
    with pytest.raises(UserError, match="6 batches into an epoch that has 5 now"):
        built.load_state_dict({**built.state_dict(), "batches": 6})
