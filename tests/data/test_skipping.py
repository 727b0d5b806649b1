"""Going on without bad audio: what is left, what is drawn, what is counted, and that it ends."""

from __future__ import annotations

import json
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
from nest_ssl.data.check import check_dataset
from nest_ssl.data.loader import AudioNoiseLoader, build_dataloader
from nest_ssl.data.skipping import SkippedAudio

Section = dict[str, Any]
WORKERS = [0, pytest.param(2, marks=pytest.mark.filterwarnings("ignore"))]  # fork, and more workers than cores
LENGTHS = [24_000, 32_000, 19_200, 40_000, 28_800]  # samples of a.wav to e.wav


@pytest.fixture
def five(section: Section, wav: Callable[..., str], manifest: Callable[..., str]) -> Section:
    """Five utterances, noise and mixing: all that draws."""
    wav("d.wav", 2.5, 3)
    wav("e.wav", 1.8, 4)
    lines = [{"audio_filepath": f"{name}.wav", "duration": length / 16_000}
             for name, length in zip("abcde", LENGTHS, strict=True)]  # fmt: skip
    # Pieces of a clip are drawn until one adds up to more than zero, which hides a draw too many if there is one clip.
    noise = [{"audio_filepath": wav(f"n{n}.wav", n, n), "duration": n} for n in (3, 4, 5)]
    mixing = {"_target_": "nemo.collections.asr.modules.ssl_modules.MultiSpeakerNoiseAugmentation", "prob": 0.5,
              "noise_ratio": 0.5}  # fmt: skip
    return {**section, "manifest_filepath": manifest(*lines), "noise_manifest": manifest(*noise, name="noise.json"),
            "batch_augmentor": mixing}  # fmt: skip


def load(section: Section, training: bool = True, **settings: Any) -> tuple[AudioNoiseLoader, SkippedAudio]:
    skipped = SkippedAudio()
    loader = build_dataloader(read(Dataset, {**section, **settings}), 16_000, skipped=skipped, training=training)
    assert loader is not None
    return loader, skipped


def seed(number: int = 1) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def states() -> tuple[list[int], str, Any]:
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def values(batch: AudioNoiseBatch) -> list[Any]:
    fields = (batch.audio, batch.audio_len, batch.noise, batch.noise_len, batch.noisy_audio, batch.noisy_audio_len)
    return [field.tolist() for field in fields if field is not None]


def lengths(loader: AudioNoiseLoader) -> list[list[int]]:
    return [batch.audio_len.tolist() for batch in loader]


def spoil(folder: Path, names: str) -> None:
    for name in names:
        (folder / f"{name}.wav").write_text("not audio")


@pytest.mark.parametrize("workers", WORKERS)
def test_without_a_bad_file_nothing_differs(workers: int, five: Section) -> None:
    settings = {**five, "num_workers": workers, "shuffle": True}
    runs = []
    for loader in (build_dataloader(read(Dataset, settings), 16_000), load(settings)[0]):
        seed()
        runs.append(([values(batch) for _ in range(2) for batch in loader], states()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("workers", WORKERS)
def test_a_bad_utterance_is_left_out_of_its_batch(workers: int, five: Section, tmp_path: Path,
                                                  caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    spoil(tmp_path, "be")
    loader, skipped = load(five, num_workers=workers, batch_size=3)
    assert lengths(loader) == lengths(loader) == [[24_000, 19_200], [40_000]]
    assert skipped.describe() == {
        "utterances": 4,
        "files": [
            {"audio": f"{name}.wav", "manifest": "manifest.json", "line": line,
             "reason": "not an audio file that can be read"} for name, line in (("b", 2), ("e", 5))
        ],
    }  # fmt: skip
    assert caplog.text.count("skipped: ") == 2, "each file once, whatever the epochs"
    assert "b.wav" in caplog.text and "manifest.json, line 2" in caplog.text


def test_a_truncated_file_is_skipped_too(five: Section, tmp_path: Path) -> None:
    (tmp_path / "d.wav").write_bytes((tmp_path / "d.wav").read_bytes()[:20_000])
    loader, skipped = load(five, batch_size=5)
    assert lengths(loader) == [[n for n in LENGTHS if n != 40_000]]
    assert "truncated" in skipped.describe()["files"][0]["reason"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_skipped_utterance_draws_nothing(
    number: int, five: Section, manifest: Callable[..., str], tmp_path: Path
) -> None:
    """The batch, and every generator after it, is as if the manifest did not name the file."""
    lines = [json.loads(line) for line in Path(five["manifest_filepath"]).read_text().splitlines()]
    without = manifest(*(line for line in lines if line["audio_filepath"] != "b.wav"), name="without.json")
    seed(number)
    wanted = [values(batch) for batch in load({**five, "manifest_filepath": without}, batch_size=4)[0]], states()
    spoil(tmp_path, "b")
    seed(number)
    assert ([values(batch) for batch in load(five, batch_size=5)[0]], states()) == wanted


@pytest.mark.parametrize("workers", WORKERS)
def test_a_batch_of_which_nothing_is_left(workers: int, five: Section, tmp_path: Path) -> None:
    """Training makes up for it with batches of another pass; validation is shorter."""
    spoil(tmp_path, "cd")
    training, skipped = load(five, num_workers=workers)
    assert len(training) == 3
    for epoch in (1, 2):
        assert lengths(training) == [[24_000, 32_000], [28_800], [24_000, 32_000]]
        assert skipped.utterances == 2 * epoch, "each utterance as often as it was met; the second pass ended early"
    validation, _ = load(five, training=False, num_workers=workers)
    assert lengths(validation) == [[24_000, 32_000], [28_800]]


def test_one_good_file_feeds_a_whole_epoch(five: Section, tmp_path: Path) -> None:
    spoil(tmp_path, "abcd")
    loader, _ = load(five, batch_size=1)
    assert lengths(loader) == [[28_800]] * 5
    assert lengths(load(five, batch_size=1, training=False)[0]) == [[28_800]]


def test_the_last_batch_may_be_dropped(five: Section, tmp_path: Path) -> None:
    spoil(tmp_path, "be")
    loader, skipped = load(five, drop_last=True)
    assert lengths(loader) == [[24_000], [19_200, 40_000]]
    assert skipped.utterances == 1, "e.wav was in no batch"


@pytest.mark.parametrize("workers", WORKERS)
def test_shuffled_epochs_are_well_defined(workers: int, five: Section, tmp_path: Path) -> None:
    spoil(tmp_path, "bd")
    runs = []
    for _ in range(2):
        seed()
        loader, skipped = load(five, shuffle=True, num_workers=workers, batch_size=1)
        epochs = [[values(batch) for batch in loader] for _ in range(3)]
        assert [len(epoch) for epoch in epochs] == [5, 5, 5]
        runs.append((epochs, states(), skipped.utterances))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("workers", WORKERS)
def test_nothing_can_be_used(workers: int, training: bool, five: Section, tmp_path: Path) -> None:
    spoil(tmp_path, "abcde")
    loader, _ = load(five, training, num_workers=workers, shuffle=True)
    with pytest.raises(UserError, match=r"none of the audio can be used: .*\.wav \(.*manifest.json, line \d\)") as told:
        next(iter(loader))
    assert "\n" not in str(told.value)


def test_no_batch_at_all_is_no_error(five: Section, tmp_path: Path) -> None:
    assert lengths(load(five, batch_size=9, drop_last=True)[0]) == []


def test_a_mistake_that_is_no_files_still_stops(five: Section, tmp_path: Path) -> None:
    spoil(tmp_path, "a")
    five["batch_augmentor"] = {"_target_": "nemo.collections.asr.modules.ssl_modules.SpeakerNoiseAugmentation",
                               "prob": 1.0, "min_mix_rate": 1, "max_mix_rate": 1}  # fmt: skip
    loader, _ = load(five, batch_size=5)
    with pytest.raises(UserError, match="leaves no place to draw"):
        next(iter(loader))


def test_the_check_warns(five: Section, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_dataset(read(Dataset, five), 16_000, skip_bad=True)
    assert caplog.text == ""
    spoil(tmp_path, "bd")
    check_dataset(read(Dataset, five), 16_000, skip_bad=True)
    assert "2 of 5 audio files cannot be used and will be skipped, the first: not an audio file" in caplog.text
    assert "manifest.json, line 2" in caplog.text
    spoil(tmp_path, "ace")
    with pytest.raises(UserError, match=r"none of the audio can be used: .*a\.wav .*line 1"):
        check_dataset(read(Dataset, five), 16_000, skip_bad=True)
