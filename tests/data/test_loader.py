"""The loader: batches, epochs, workers, and mistakes that cross process borders whole."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from nest_ssl.base.determinism import seed_all
from nest_ssl.base.errors import UserError
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.data.loader import build_dataloader, validation_sections
from nest_ssl.data.skipping import SkippedAudio
from nest_ssl.releases import GENERATIONS

Section = dict[str, Any]
# Python 3.12 warns of fork in a process with threads, torch of more workers than cores.
with_workers = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def noise(wav: Callable[..., str], manifest: Callable[..., str]) -> str:
    """A manifest of two noise clips, longer than the utterances: each item draws which, and where it starts."""
    lines = [{"audio_filepath": wav(f"noise{i}.wav", 4.0, 10 + i), "duration": 4.0} for i in range(2)]
    return manifest(*lines, name="noise.json")


def test_batches_in_order(section: Section) -> None:
    loader = build_dataloader(read(Dataset, section), 16_000)
    assert len(loader) == 2
    assert [batch.audio_len.tolist() for batch in loader] == [[24_000, 32_000], [19_200]]
    assert len(build_dataloader(read(Dataset, {**section, "drop_last": True}), 16_000)) == 1


def test_no_section_no_loader() -> None:
    assert build_dataloader(None, 16_000) is None


def test_nothing_is_drawn_until_it_is_asked(section: Section) -> None:
    """torch draws a base seed at `iter()`, and a seed for shuffling at the first `next()`."""
    torch.manual_seed(0)
    states = [torch.get_rng_state()]
    loader = build_dataloader(read(Dataset, {**section, "shuffle": True}), 16_000)
    states.append(torch.get_rng_state())
    batches = iter(loader)
    states.append(torch.get_rng_state())
    next(batches)
    states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])
    assert not torch.equal(states[2], states[3])


def test_shuffling_follows_the_seed(section: Section) -> None:
    def order(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return [
            n
            for batch in build_dataloader(read(Dataset, section), 16_000, shuffle=True)
            for n in batch.audio_len.tolist()
        ]

    assert order(0) == order(1) == [24_000, 32_000, 19_200], "the section says shuffle: false"
    del section["shuffle"]
    orders = [order(seed) for seed in (0, 0, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len({tuple(lengths) for lengths in orders}) > 1


@with_workers
def test_workers_give_the_same_from_the_same_seed(
    section: Section, manifest: Callable[..., str], wav: Callable[..., str]
) -> None:
    section["noise_manifest"] = manifest({"audio_filepath": wav("n.wav", 4.0), "duration": 4.0}, name="noise.json")
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(np.random.default_rng().integers(1 << 30))  # of no influence: workers have their own
        runs.append([batch.noise for batch in build_dataloader(read(Dataset, {**section, "num_workers": 2}), 16_000)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=with_workers)])
def test_a_bad_file_is_a_user_error_also_from_a_worker(workers: int, section: Section, tmp_path: Path) -> None:
    (tmp_path / "b.wav").write_text("not audio")
    loader = build_dataloader(read(Dataset, {**section, "num_workers": workers, "batch_size": 1}), 16_000)
    batches = iter(loader)
    next(batches)
    with pytest.raises(UserError, match=r"not an audio file that can be read: .*b.wav \(.*manifest.json, line 2\)"):
        next(batches)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=with_workers)])
def test_a_mistake_met_while_mixing(workers: int, section: Section) -> None:
    mixing = {"_target_": "nemo.collections.asr.modules.ssl_modules.SpeakerNoiseAugmentation", "prob": 1.0,
              "min_mix_rate": 1, "max_mix_rate": 1}  # fmt: skip
    loader = build_dataloader(read(Dataset, {**section, "num_workers": workers, "batch_augmentor": mixing}), 16_000)
    with pytest.raises(UserError, match="leaves no place to draw"):
        next(iter(loader))


def test_mistakes_of_the_section(section: Section, manifest: Callable[..., str]) -> None:
    cases = {
        "no such manifest": {"manifest_filepath": "none.json"},
        "an empty manifest": {"manifest_filepath": manifest(name="empty.json")},
        "none of 3 entries": {"min_duration": 50},
        "no such manifest: gone.json": {"noise_manifest": "gone.json"},
    }
    for message, change in cases.items():
        with pytest.raises(UserError, match=message):
            build_dataloader(read(Dataset, {**section, **change}), 16_000)


def test_validation_sections(section: Section, manifest: Callable[..., str]) -> None:
    second = manifest({"audio_filepath": "a.wav"}, name="second.json")
    paths = [section["manifest_filepath"], second]
    several = {**section, "manifest_filepath": paths}
    assert [part["manifest_filepath"] for part in validation_sections(several)] == paths
    assert validation_sections(section) == [section]
    assert validation_sections({**several, "val_dl_idx": -1}) == [several]
    joined = {**section, "manifest_filepath": ",".join(paths)}
    assert validation_sections(joined) == [joined]


def state_of_generators() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()]


def tensors(batch: AudioNoiseBatch) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in vars(batch).items() if value is not None}


@with_workers
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_is_taken_up_where_it_was_left(section: Section, noise: str, workers: int, shuffle: bool) -> None:
    section = {**section, "shuffle": shuffle, "batch_size": 1, "num_workers": workers, "noise_manifest": noise}
    seed_all(3)
    whole = build_dataloader(read(Dataset, section), 16_000)
    list(whole)  # an epoch before
    batches, state, generators = iter(whole), None, None
    for _ in range(2):
        next(batches)
    state, generators = whole.state_dict(), generator_states()
    rest, end = list(batches), state_of_generators()

    seed_all(99)
    resumed = build_dataloader(read(Dataset, section), 16_000)
    resumed.load_state_dict(state)
    batches = iter(resumed)
    assert resumed.state_dict()["batches"] == 2
    restore_generators(generators)
    again = list(batches)
    assert len(again) == len(rest) == 1 and state_of_generators() == end
    for one, other in zip(again, rest, strict=True):
        assert tensors(one) and tensors(one) == tensors(other)
    assert resumed.state_dict()["batches"] == 3 and torch.equal(resumed.state_dict()["generator"], state["generator"])
    assert len(list(resumed)) == 3, "the next epoch is whole"


def test_a_finished_epoch_stays_finished(section: Section) -> None:
    loader = build_dataloader(read(Dataset, section), 16_000)
    list(loader)
    resumed = build_dataloader(read(Dataset, {**section, "num_workers": 2}), 16_000)
    resumed.load_state_dict(loader.state_dict())
    assert list(resumed) == [] and resumed.state_dict()["batches"] == 2


def test_data_that_has_shrunk_cannot_be_resumed(section: Section) -> None:
    loader = build_dataloader(read(Dataset, section), 16_000)
    list(loader)
    with pytest.raises(UserError, match="2 batches into an epoch that has 1 now"):
        build_dataloader(read(Dataset, {**section, "batch_size": 3}), 16_000).load_state_dict(loader.state_dict())


# --- what older releases of NeMo do otherwise -------------------------------------------------------------------------


def test_the_augmentation_draws_from_the_generator_asked_for(section: Section) -> None:
    mixing = {"_target_": "nemo.collections.asr.modules.ssl_modules.MultiSpeakerNoiseAugmentation", "prob": 1.0,
              "noise_ratio": 0.0, "min_mix_rate": 0.5, "max_mix_rate": 0.5}  # fmt: skip

    def first(draws: str, python_seed: int, numpy_seed: int) -> torch.Tensor:
        random.seed(python_seed)
        np.random.seed(numpy_seed)
        row = replace(GENERATIONS["3.0"], augmentation_draws=draws)
        loader = build_dataloader(read(Dataset, {**section, "batch_augmentor": mixing}), 16_000, differences=row)
        return next(iter(loader)).noise

    for draws, python_counts in (("python", True), ("numpy", False)):
        base = first(draws, 1, 1)
        assert torch.equal(base, first(draws, 1, 1))
        assert torch.equal(base, first(draws, 2, 1)) != python_counts
        assert torch.equal(base, first(draws, 1, 2)) == python_counts


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=with_workers)])
@pytest.mark.parametrize("whose", ["manifest_filepath", "noise_manifest"])
def test_what_takes_pydub_is_told_where_there_is_none(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str, workers: int
) -> None:
    monkeypatch.setitem(sys.modules, "pydub", None)
    soundfile.write(tmp_path / "a.WAV", np.full(20_000, 0.1), 16_000)
    (tmp_path / "m.json").write_text(json.dumps({"audio_filepath": "a.WAV", "duration": 1.25}))
    section = {**section, whose: str(tmp_path / "m.json"), "num_workers": workers}
    assert next(iter(build_dataloader(read(Dataset, section), 16_000))).audio.any()
    skipped = SkippedAudio()
    for how in ({}, {"skipped": skipped}):
        with pytest.raises(UserError) as raised:
            next(iter(build_dataloader(read(Dataset, section), 16_000, differences=GENERATIONS["2.7"], **how)))
        said = str(raised.value)
        del raised  # and with it the loader
        assert said == (
            "NeMo before 3.0 reads this audio file through pydub, which is not installed here: "
            f"{tmp_path}/a.WAV ({tmp_path}/m.json, line 1). "
            "Install pydub; or convert the file to one that soundfile reads, with its suffix in lower case."
        )
    assert skipped.utterances == 0, "it is no file's fault"
