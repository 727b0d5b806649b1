"""Decoding, channels, resampling, trimming; and what is decoded to something that is no audio."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from nest_ssl.data.audio import Decoding, load
from nest_ssl.data.problems import AudioProblem, ReaderProblem, UnfitAudio

RATE = 16_000
HOW = Decoding(RATE, strict=True)


@pytest.fixture(scope="session")
def _librosa() -> None:
    """Imported, and compiled by numba, before a test is timed."""
    import librosa

    librosa.effects.trim(librosa.resample(np.zeros(1_000), orig_sr=8_000, target_sr=16_000))


@pytest.fixture
def folder(tmp_path: Path, wav: Callable[..., str]) -> Path:
    wav("a.wav", 2.0)
    wav("stereo.wav", 1.0, channels=2)
    wav("fast.wav", 1.0, rate=44_100)
    return tmp_path


def test_whole_and_piece(folder: Path) -> None:
    whole, _ = soundfile.read(folder / "a.wav", dtype="float32")
    path = str(folder / "a.wav")
    assert np.array_equal(load(path, None, None, HOW), whole)
    assert np.array_equal(load(path, 0, -1, HOW), whole)
    assert np.array_equal(load(path, 0.5, 1.0, HOW), whole[8_000:24_000])
    assert np.array_equal(load(path, 1.5, None, HOW), whole[24_000:])
    assert len(load(path, 2.0, None, HOW)) == 0


def test_integers_give_the_same_values_for_pcm(folder: Path) -> None:
    path = str(folder / "a.wav")
    assert np.array_equal(load(path, 0, 0, Decoding(RATE, int_values=True)), load(path, 0, 0, HOW))


@pytest.mark.usefixtures("_librosa")
def test_resampled_length(folder: Path) -> None:
    samples = load(str(folder / "fast.wav"), 0, 0, HOW)
    assert samples.dtype == np.float32
    assert samples.shape == (RATE,)


@pytest.mark.usefixtures("_librosa")
def test_trim(folder: Path) -> None:
    samples = np.zeros(3 * RATE)
    samples[RATE : 2 * RATE] = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    soundfile.write(folder / "padded.wav", samples, RATE)
    trimmed = load(str(folder / "padded.wav"), 0, 0, Decoding(RATE, trim=True))
    assert RATE <= len(trimmed) < 1.3 * RATE


def test_channels(folder: Path) -> None:
    path = str(folder / "stereo.wav")
    both, _ = soundfile.read(path, dtype="float32")
    assert np.array_equal(load(path, 0, 0, HOW), both)
    for selector, wanted in {0: both[:, 0], 1: both[:, 1], -1: both[:, 1], "average": both.mean(1)}.items():
        assert np.array_equal(load(path, 0, 0, Decoding(RATE, channel_selector=selector)), wanted)
    assert np.array_equal(load(path, 0, 0, Decoding(RATE, channel_selector=[1])), both[:, 1])


def test_files_of_one_channel_each(folder: Path) -> None:
    paths = [str(folder / "a.wav")] * 2
    one = load(paths[0], 0, 0, HOW)
    assert load(paths, 0, 0, HOW).shape == (2 * RATE, 2)
    assert np.array_equal(load(paths, 0, 0, Decoding(RATE, channel_selector="average")), one)
    assert np.array_equal(load(paths, 0, 0, Decoding(RATE, channel_selector=1)), one)
    with pytest.raises(AudioProblem, match="2 files, and channel_selector=2"):
        load(paths, 0, 0, Decoding(RATE, channel_selector=2))
    with pytest.raises(AudioProblem, match="2 channels"):
        load([str(folder / "stereo.wav"), paths[0]], 0, 0, HOW)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("strict", [True, False])
def test_samples_that_are_no_numbers(value: float, subtype: str, strict: bool, folder: Path) -> None:
    samples = np.zeros(2 * RATE)
    samples[RATE + 5] = value
    path = str(folder / "nan.wav")
    soundfile.write(path, samples, RATE, subtype=subtype)
    with pytest.raises(UnfitAudio, match="samples that are no numbers"):
        load(path, None, None, Decoding(RATE, strict=strict))
    assert len(load(path, 0, 1.0, HOW)) == RATE, "the piece that is asked for is sound"


def test_pydub_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydub", None)
    (folder / "a.wav").rename(folder / "a.WAV")
    with pytest.raises(ReaderProblem, match="through pydub, which is not installed here") as raised:
        load(str(folder / "a.WAV"), None, None, Decoding(RATE, strict=True, reader="pydub"))
    assert raised.value.fix.startswith("Install pydub")


def test_pydub_finds_no_ffmpeg(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class AudioSegment:
        @staticmethod
        def from_file(path: str) -> None:
            raise FileNotFoundError(2, "No such file or directory", "ffprobe")

    monkeypatch.setitem(sys.modules, "pydub", SimpleNamespace(AudioSegment=AudioSegment))
    (folder / "a.wav").rename(folder / "a.m4a")
    with pytest.raises(ReaderProblem, match="pydub needs ffmpeg"):
        load(str(folder / "a.m4a"), None, None, Decoding(RATE, reader="pydub"))
    (folder / "junk.wav").write_text("not audio")
    with pytest.raises(FileNotFoundError):  # where soundfile's formats are concerned, it is the file that is bad
        load(str(folder / "junk.wav"), None, None, Decoding(RATE, reader="pydub"))
    with pytest.raises(AudioProblem, match="no such audio file"):
        load(str(folder / "gone.m4a"), None, None, Decoding(RATE, reader="pydub"))
