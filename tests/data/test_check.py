"""The check before training: the first thing wrong, in one line; a warning for noise that cannot be used."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from torch.utils import data

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data import check
from nest_ssl.data.check import audio_behind, check_dataset
from nest_ssl.data.corpus import Corpora

Section = dict[str, Any]


def test_good_data_passes_without_a_word(section: Section, caplog: pytest.LogCaptureFixture) -> None:
    check_dataset(read(Dataset, {**section, "noise_manifest": section["manifest_filepath"]}), 16_000)
    assert caplog.text == ""


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda p: p.unlink(), "no such audio file"),
    (lambda p: p.write_bytes(b""), "an empty audio file"),
    (lambda p: p.write_text("text"), "not an audio file that can be read"),
    (lambda p: p.write_bytes(p.read_bytes()[:20_000]), "a truncated audio file"),
])  # fmt: skip
def test_bad_files(spoil: Callable[[Path], Any], message: str, section: Section, tmp_path: Path) -> None:
    spoil(tmp_path / "b.wav")
    with pytest.raises(UserError, match=rf"{message}.*: .*b.wav \(.*manifest.json, line 2\)\. .*\.$") as raised:
        check_dataset(read(Dataset, section), 16_000)
    assert "\n" not in str(raised.value)


def test_only_what_will_be_used_is_checked(section: Section, tmp_path: Path) -> None:
    (tmp_path / "b.wav").unlink()
    check_dataset(read(Dataset, {**section, "max_duration": 1.9}), 16_000)


def test_stereo_needs_a_channel(section: Section, wav: Callable[..., str], manifest: Callable[..., str]) -> None:
    section["manifest_filepath"] = manifest({"audio_filepath": wav("s.wav", channels=2)})
    with pytest.raises(UserError, match="2 channels, and channel_selector=None does not leave one"):
        check_dataset(read(Dataset, section), 16_000)
    check_dataset(read(Dataset, {**section, "channel_selector": 1}), 16_000)
    with pytest.raises(UserError, match="2 channels, and channel_selector=2"):
        check_dataset(read(Dataset, {**section, "channel_selector": 2}), 16_000)


def test_an_offset_beyond_the_end(section: Section, manifest: Callable[..., str]) -> None:
    section["manifest_filepath"] = manifest({"audio_filepath": "a.wav", "offset": 9.5})
    with pytest.raises(UserError, match=r"offset 9.5 s lies beyond the end \(1.500 s\)"):
        check_dataset(read(Dataset, section), 16_000)


def test_bad_noise_is_a_warning(section: Section, manifest: Callable[..., str], wav: Callable[..., str],
                                caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    lines = [{"audio_filepath": name} for name in (wav("n.wav"), wav("s.wav", channels=2), "gone.wav")]
    check_dataset(read(Dataset, {**section, "noise_manifest": manifest(*lines, name="noise.json")}), 16_000)
    assert "2 of 3 noise clips cannot be used" in caplog.text and "noise.json, line 2" in caplog.text
    check_dataset(read(Dataset, {**section, "noise_manifest": manifest(name="nothing.json")}), 16_000)
    assert "training without noise" in caplog.text


def test_a_large_corpus_is_checked_in_part(section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "CHECKED_AT_MOST", 2)
    (tmp_path / "b.wav").unlink()
    check_dataset(read(Dataset, section), 16_000)  # every second line: the first and the third
    (tmp_path / "c.wav").unlink()
    with pytest.raises(UserError, match="line 3"):
        check_dataset(read(Dataset, section), 16_000)


# --- what spoils a training without a word ----------------------------------------------------------------------------


def test_nan_is_found_before_training(section: Section, manifest: Callable[..., str], tmp_path: Path,
                                      caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    samples = np.full(16_000, 0.1)
    samples[777] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    lines = [{"audio_filepath": "a.wav"}, {"audio_filepath": "nan.wav"}]
    bad = manifest(*lines, name="bad.json")
    with pytest.raises(UserError, match=r"samples that are no numbers .*nan.wav \(.*bad.json, line 2\)"):
        check_dataset(read(Dataset, {**section, "manifest_filepath": bad}), 16_000)
    with pytest.raises(UserError, match=r"samples that are no numbers .*nan.wav \(.*bad.json, line 2\)"):
        check_dataset(read(Dataset, {**section, "noise_manifest": bad}), 16_000)
    check_dataset(read(Dataset, {**section, "manifest_filepath": bad}), 16_000, skip_bad=True)
    assert "1 of 2 audio files cannot be used and will be skipped, the first: an audio file with samples" in caplog.text


def test_a_rate_of_11_hz_as_noise_stops(section: Section, manifest: Callable[..., str], tmp_path: Path) -> None:
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[24:28] = (11).to_bytes(4, "little")
    (tmp_path / "slow.wav").write_bytes(data)
    section["noise_manifest"] = manifest({"audio_filepath": "slow.wav"}, name="noise.json")
    with pytest.raises(UserError, match=r"a sampling rate of 11 Hz in its header: .*slow.wav \(.*noise.json, line 1\)"):
        check_dataset(read(Dataset, section), 16_000)


@pytest.mark.parametrize("value", ["NaN", "true", "-1", '"2.0"', "Infinity"])
def test_seconds_of_noise_that_are_none(value: str, section: Section, manifest: Callable[..., str],
                                        caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    """A warning: what NeMo makes of it, it makes while it draws."""
    line = f'{{"audio_filepath": "a.wav", "duration": {value}}}'
    check_dataset(read(Dataset, {**section, "noise_manifest": manifest(line, name="noise.json")}), 16_000)
    assert "1 of 1 noise clips cannot be used" in caplog.text and "duration is not a number of seconds" in caplog.text


def test_only_so_many_floating_point_files_are_decoded(section: Section, manifest: Callable[..., str], tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name in "xyz":
        soundfile.write(tmp_path / f"{name}.wav", np.full(16_000, np.nan if name == "z" else 0.1), 16_000, "FLOAT")
    many = manifest(*({"audio_filepath": f"{name}.wav"} for name in "axyz"), name="many.json")
    monkeypatch.setattr(check, "DECODED_AT_MOST", 2)
    check_dataset(read(Dataset, {**section, "manifest_filepath": many, "noise_manifest": many}), 16_000)
    monkeypatch.setattr(check, "DECODED_AT_MOST", 3)
    for key in ("manifest_filepath", "noise_manifest"):
        with pytest.raises(UserError, match="line 4"):
            check_dataset(read(Dataset, {**section, key: many}), 16_000)


# --- whom to blame ----------------------------------------------------------------------------------------------------


class Reading(data.Dataset[Any]):
    """Raises an error when it is read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        raise self.error


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.filterwarnings("ignore"))])
def test_a_file_that_only_decoding_shows_is_found_if_reading_raised(
    workers: int, section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two sections has it; only the header of that file is sound."""
    train = read(Dataset, section)
    shutil.copytree(tmp_path, tmp_path / "other")
    samples, rate = soundfile.read(tmp_path / "b.wav")
    soundfile.write(tmp_path / "other/b.wav", samples, rate, format="FLAC")
    (tmp_path / "other/b.wav").write_bytes((tmp_path / "other/b.wav").read_bytes()[:9_000])
    other = read(Dataset, {**section, "manifest_filepath": str(tmp_path / "other/manifest.json")})
    check_dataset(other, 16_000)
    batches: Any = iter(data.DataLoader(Reading(soundfile.LibsndfileError(5)), num_workers=workers))
    with pytest.raises(soundfile.LibsndfileError) as raised:
        next(batches)
    if workers:
        batches._shutdown_workers()  # left to the garbage collector, it takes 5 s
    assert audio_behind(raised.value, [train], Corpora()) is None
    bad = str(audio_behind(raised.value, [train, other], Corpora()))
    assert "other/b.wav" in bad and "line 2" in bad
    monkeypatch.setattr(check, "load_utterance", None)  # decodes nothing, or fails
    with pytest.raises(OSError, match="No space left") as full:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert audio_behind(full.value, [train, other], Corpora()) is None
