"""Decoding, channels, and telling what is wrong with a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.data.audio import AudioProblem, Decoding, check_header, load, refuse_channels

RATE = 16_000
HOW = Decoding(RATE, strict=True)
FORMATS = {"flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "wav": "PCM_16"}


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


def test_resampled_length(folder: Path) -> None:
    samples = load(str(folder / "fast.wav"), 0, 0, HOW)
    assert samples.dtype == np.float32
    assert samples.shape == (RATE,)


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


@given(
    channels=st.integers(1, 4),
    selector=st.none() | st.integers(-5, 5) | st.just("average") | st.lists(st.integers(0, 4), min_size=1, max_size=2),
)
def test_one_channel_must_be_left(channels: int, selector: Any) -> None:
    signal = np.zeros((7, channels))
    if channels == 1:
        fine = selector in (None, 0, "average")
    elif isinstance(selector, list):
        fine = len(selector) == 1 and selector[0] < channels
    else:
        fine = selector == "average" or (isinstance(selector, int) and -channels <= selector < channels)
    if fine:
        refuse_channels(channels, selector)
        assert selector in (None, "average") or signal[:, selector] is not None
    else:
        with pytest.raises(AudioProblem, match="channel"):
            refuse_channels(channels, selector)


# --- bad files --------------------------------------------------------------------------------------------------------


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def problem_of(function: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(AudioProblem) as raised:
        function(*arguments)
    assert raised.value.fix.endswith(".")
    return raised.value.what


@pytest.mark.parametrize(("make", "message"), [
    (lambda path: path.unlink(), "no such audio file"),
    (lambda path: path.write_bytes(b""), "an empty audio file"),
    (lambda path: path.write_text("hello " * 100), "not an audio file"),
    (lambda path: (path.unlink(), path.mkdir()), "an audio file that cannot be opened"),
    (half, r"a truncated audio file \(1.00 s where 2.00 s are promised\)"),
    (lambda path: path.write_bytes(path.read_bytes()[:-2]), "a truncated audio file"),
])  # fmt: skip
def test_bad_files(make: Callable[[Path], Any], message: str, folder: Path) -> None:
    make(folder / "a.wav")
    for duration in (None, 2.0):
        for function in (check_header, lambda *a: load(*a[:3], HOW)):
            assert re.match(message, problem_of(function, str(folder / "a.wav"), None, duration, None))


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_formats(suffix: str, folder: Path) -> None:
    path = folder / f"b.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE), RATE, subtype=FORMATS[suffix])
    check_header(str(path), None, 3.0, None)
    half(path)
    with pytest.raises((AudioProblem, soundfile.LibsndfileError)):
        load(str(path), None, 3.0, HOW)


def test_noise_is_read_as_far_as_it_goes(folder: Path) -> None:
    half(folder / "a.wav")
    assert len(load(str(folder / "a.wav"), None, 2.0, Decoding(RATE))) == (64_044 // 2 - 44) // 2


@pytest.mark.parametrize(("offset", "duration", "fine"), [
    (None, 2.2, True), (None, 2.5, False), (1.0, 1.2, True), (1.0, 2.0, False), (2.0, None, True), (2.01, None, False),
    (None, 1e-3, True), (-1.0, 2.0, True), (0, 0, True),
])  # fmt: skip
def test_how_much_a_manifest_may_promise(
    offset: float | None, duration: float | None, fine: bool, folder: Path
) -> None:
    """Rounded durations pass; what is clearly not there does not."""
    arguments = (str(folder / "a.wav"), offset, duration)
    if fine:
        check_header(*arguments, None)
        load(*arguments, HOW)
    else:
        assert "2.0" in problem_of(check_header, *arguments, None)
        assert "2.0" in problem_of(load, *arguments, HOW)


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_wav_of_unknown_length(size: int, folder: Path) -> None:
    """What programs write to a pipe, where they cannot go back and fill in the size."""
    data = bytearray((folder / "a.wav").read_bytes())
    data[40:44] = size.to_bytes(4, "little")
    (folder / "piped.wav").write_bytes(data)
    check_header(str(folder / "piped.wav"), None, 2.0, None)
    assert len(load(str(folder / "piped.wav"), None, 2.0, HOW)) == 2 * RATE


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT", "DOUBLE", "IMA_ADPCM", "ULAW", "GSM610"])
def test_wav_of_other_kinds_is_not_taken_for_truncated(subtype: str, folder: Path) -> None:
    for kind in ("WAV", "WAVEX") if subtype not in ("IMA_ADPCM", "GSM610") else ("WAV",):
        soundfile.write(folder / "k.wav", np.zeros(RATE), RATE, subtype=subtype, format=kind)
        check_header(str(folder / "k.wav"), None, 1.0, None)
        assert len(load(str(folder / "k.wav"), None, 1.0, HOW)) == RATE


def test_wav_with_other_chunks_first(folder: Path) -> None:
    data = (folder / "a.wav").read_bytes()
    extra = b"LIST" + (5).to_bytes(4, "little") + b"INFOx\0"
    (folder / "tagged.wav").write_bytes(data[:36] + extra + data[36:-20_000])
    assert "truncated" in problem_of(check_header, str(folder / "tagged.wav"), None, None, None)
