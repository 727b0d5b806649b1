"""What a header may promise, and what is said of a file that cannot be used."""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nest_ssl.base.errors import UserError
from nest_ssl.data.audio import Decoding, load
from nest_ssl.data.header import check_header
from nest_ssl.data.manifest import read_speech
from nest_ssl.data.problems import AudioProblem, ReaderProblem, UnfitAudio

RATE = 16_000
HOW = Decoding(RATE, strict=True)
FORMATS = {"flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III", "wav": "PCM_16"}


@pytest.fixture
def folder(tmp_path: Path, wav: Callable[..., str]) -> Path:
    wav("a.wav", 2.0)
    return tmp_path


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


# --- what is no audio file --------------------------------------------------------------------------------------------


def both_say(path: Path | str) -> AudioProblem:
    """The problem, which the check and the reader state alike."""
    problems = []
    for function in (lambda: check_header(str(path), None, None, None), lambda: load(str(path), None, None, HOW)):
        with pytest.raises(AudioProblem) as raised:
            function()
        problems.append(raised.value)
    assert problems[0].args == problems[1].args and type(problems[0]) is type(problems[1])
    return problems[0]


def test_headerless_audio(folder: Path) -> None:
    (folder / "a.raw").write_bytes(bytes(32_000))
    assert both_say(folder / "a.raw").what == "not an audio file that can be read"


@pytest.mark.parametrize("reader", ["soundfile", "pydub"])
def test_only_regular_files_are_opened(folder: Path, reader: Any) -> None:
    os.mkfifo(folder / "pipe.wav")
    (folder / "zero.wav").symlink_to("/dev/zero")
    (folder / "folder.WAV").mkdir()
    kinds = {"pipe.wav": "pipe or a device", "zero.wav": "pipe or a device", "folder.WAV": "folder"}
    for name, kind in kinds.items():
        assert both_say(folder / name).what == f"an audio file that cannot be opened (a {kind})"
        with pytest.raises(AudioProblem, match=f"cannot be opened .a {kind}"):
            load(str(folder / name), None, None, Decoding(RATE, reader=reader))


def test_files_of_proc_are_not_waited_for() -> None:
    if not os.path.exists("/proc/kmsg"):
        pytest.skip("no /proc here")
    assert both_say("/proc/kmsg").what == "an empty audio file"


@pytest.mark.parametrize("path", ["a\0.wav", "\ud800.wav"])
def test_what_is_no_path(path: str) -> None:
    assert both_say(path).what.startswith("an audio file that cannot be opened")


def test_backslashes(folder: Path) -> None:
    assert both_say("train\\utt_00.wav").fix == "Write its path with forward slashes, as NeMo needs it."
    assert "forward" not in both_say("train/utt_00.wav").fix
    (folder / "a\\b.wav").write_bytes((folder / "a.wav").read_bytes())
    assert len(load(str(folder / "a\\b.wav"), None, None, HOW)) == 2 * RATE, "a letter like others where it is there"


def test_in_a_container_files_may_be_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DATA=" not in both_say("gone.wav").fix
    monkeypatch.setenv("NEST_SSL_IMAGE", "nest-ssl-nest")
    assert both_say("gone.wav").fix.endswith("A container sees only the folders that DATA= names.")
    with pytest.raises(UserError, match="no such manifest: gone.json.* A container sees only the folders that DATA="):
        read_speech("gone.json")


@pytest.mark.parametrize("rate", [1, 2, 11, 999, 1_000_001, 16_000 ^ 1 << 30, 0x7FFFFFFF])
def test_a_rate_that_nothing_has(rate: int, folder: Path) -> None:
    """32 kB of audio at 1 Hz became 4.6 GB; a flipped bit in the rate took 15 s a file."""
    data = bytearray((folder / "a.wav").read_bytes())
    data[24:28] = struct.pack("<I", rate)
    (folder / "rate.wav").write_bytes(data)
    problem = both_say(folder / "rate.wav")
    assert (
        isinstance(problem, UnfitAudio)
        and problem.what == f"an audio file with a sampling rate of {rate:,} Hz in its header"
    )


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 44_100, 192_000, 1_000_000])
def test_rates_of_recordings(rate: int, folder: Path) -> None:
    soundfile.write(folder / "rate.wav", np.zeros(500), rate)
    assert not check_header(str(folder / "rate.wav"), None, None, None)


def test_what_the_machine_lacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "stat", refuse)
    assert isinstance(both_say(folder / "a.wav"), ReaderProblem)


def test_which_files_may_hold_nan(folder: Path) -> None:
    for subtype, floating in {"PCM_16": False, "FLOAT": True, "DOUBLE": True, "ULAW": False}.items():
        soundfile.write(folder / "f.wav", np.zeros(RATE), RATE, subtype=subtype)
        assert check_header(str(folder / "f.wav"), None, None, None) is floating
        assert check_header([str(folder / "a.wav"), str(folder / "f.wav")], None, None, "average") is floating
