"""An audio file -> mono float32 samples at the wanted rate, with NeMo's bits.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.parts.preprocessing.segment.AudioSegment.from_file`. The
decoder (libsndfile through soundfile) and the resampler and trimmer (librosa, soxr) are the ones that NeMo calls.

Legend: T samples, C channels.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import soundfile

from nest_ssl.base.errors import UserError

Samples = np.ndarray[Any, np.dtype[np.float32]]

MISSING_SECONDS = 0.25  # a file this much shorter than promised, and by
MISSING_PART = 0.05  # this part of the promise, is taken for truncated; less is rounding in a manifest
UNKNOWN_WAV_SIZE = 0x7FFF0000  # programs that write WAV to a pipe put a size like this


class AudioProblem(Exception):
    """What is wrong with an audio file and what to do about it; who reads the file knows where it was named."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix


@dataclass(frozen=True)
class Decoding:
    """How files become samples.

    Args:
        sample_rate: of the result, Hz.
        int_values: decode to 32-bit integers first (NeMo's option; other bits for floating-point files).
        trim: cut silence (60 dB below the peak) from both ends.
        channel_selector: None (the file must have one channel), a channel from 0, ``"average"``, or a list of one.
        strict: refuse truncated files. NeMo takes what is there, and so do we for noise.
        reader: ``soundfile``; or ``pydub``, which before NeMo 3.0 reads what soundfile cannot, and suffixes it lacks.
    """

    sample_rate: int
    int_values: bool = False
    trim: bool = False
    channel_selector: int | str | Sequence[int] | None = None
    strict: bool = False
    reader: str = "soundfile"


def load(audio_file: str | list[str], offset: Any, duration: Any, how: Decoding) -> Samples:
    """A piece of a recording, float32 in [-1, 1].

    Args:
        audio_file: a file, or several single-channel files that are one recording.
        offset: seconds from the start, None for 0.
        duration: seconds; None, 0 or less for all.
        how: see `Decoding`.

    Returns:
        [T], or [T, C] when several channels are left.

    Raises:
        AudioProblem: the file is truncated (`strict`) or its channels do not suit.
        UserError: it takes pydub to read the file, and pydub is not installed.
        Exception: whatever the decoder and the resampler raise.
    """
    if not isinstance(audio_file, list):
        samples, rate = _read(audio_file, offset, duration, how)
        return _finish(samples, rate, how)
    files, selector = _choose(audio_file, how.channel_selector)
    single = replace(how, trim=False, channel_selector=None)
    channels_T = [load(path, offset, duration, single) for path in files]
    for samples in channels_T:
        refuse_channels(samples.shape[-1] if samples.ndim == 2 else 1, None)
    joined_TC = np.squeeze(np.stack(channels_T, axis=1))
    return _finish(joined_TC, how.sample_rate, replace(how, channel_selector=selector))


def decoder_errors() -> tuple[type[Exception], ...]:
    """What NeMo's readers raise over a file: soundfile; before 3.0 pydub too, which may find no program to decode."""
    pydub = sys.modules.get("pydub.exceptions")  # only those that use it have imported it
    return (soundfile.SoundFileError, OSError, *([pydub.PydubException] if pydub else []))


def check_header(audio_file: str | list[str], offset: float | None, duration: float | None, selector: Any) -> None:
    """Everything that `load` would refuse (`strict`) and that can be known without decoding.

    Raises:
        AudioProblem: see `load`, and files that are not there, empty, or no audio.
    """
    if not isinstance(audio_file, list):
        refuse_channels(_channels(audio_file, offset, duration), selector)
        return
    files, selector = _choose(audio_file, selector)
    for path in files:
        refuse_channels(_channels(path, offset, duration), None)
    refuse_channels(len(files), selector)


def open_audio(path: str) -> soundfile.SoundFile:
    """Open for reading; the caller closes it.

    Raises:
        AudioProblem: told apart: not there, not to be read, empty, not audio.
    """
    try:
        return soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        raise _why_not_opened(path) from error


def is_listed_format(path: str) -> bool:
    """Whether the suffix is a format of soundfile in lower case; NeMo before 3.0 gives others to pydub."""
    return os.path.splitext(path)[1] in {f".{name.lower()}" for name in soundfile.available_formats()}


def refuse_channels(channels: int, selector: Any) -> None:
    """Training takes one channel: refuse what leaves another number.

    Raises:
        AudioProblem: with the `channel_selector` that would do.
    """
    if channels == 1:
        if selector not in (None, 0, "average"):
            raise AudioProblem(f"one channel, and channel_selector={selector} asks for another", "Set it to null.")
        return
    wanted = selector[0] if isinstance(selector, Sequence) and len(selector) == 1 else selector
    if wanted == "average" or (isinstance(wanted, int) and -channels <= wanted < channels):
        return
    fix = f"Set channel_selector to 0..{channels - 1} or to average."
    raise AudioProblem(f"{channels} channels, and channel_selector={selector} does not leave one", fix)


# --- decoding ---------------------------------------------------------------------------------------------------------


def _read(path: str, offset: Any, duration: Any, how: Decoding) -> tuple[np.ndarray[Any, Any], int]:
    """The decoder's samples [T] or [T, C] and the file's own rate in Hz."""
    if how.reader == "pydub" and not is_listed_format(path):
        return _read_with_pydub(path, offset, duration)
    try:
        return _read_with_soundfile(path, offset, duration, how)
    except (AudioProblem, RuntimeError):
        if how.reader != "pydub" or how.strict or not os.path.exists(path):
            raise
        return _read_with_pydub(path, offset, duration)


def _read_with_soundfile(path: str, offset: Any, duration: Any, how: Decoding) -> tuple[np.ndarray[Any, Any], int]:
    dtype = "int32" if how.int_values else "float32"
    with open_audio(path) as file:
        if how.strict:
            _refuse_truncated(file, path, offset, duration)
        promised = file.frames - _frames(offset, file.samplerate)
        if offset is not None and offset > 0:
            file.seek(int(offset * file.samplerate))
        if duration is not None and duration > 0:
            promised = min(promised, int(duration * file.samplerate))
            samples = file.read(int(duration * file.samplerate), dtype=dtype)
        else:
            samples = file.read(dtype=dtype)
        if how.strict:
            _refuse_short(len(samples), promised, file.samplerate)
        return samples, file.samplerate


def _read_with_pydub(path: str, offset: Any, duration: Any) -> tuple[np.ndarray[Any, Any], int]:
    """Integers of the file's own width, cut at whole milliseconds."""
    try:
        from pydub import AudioSegment
    except ImportError as error:
        what = "NeMo before 3.0 reads this audio file through pydub, which is not installed here"
        fix = "Install pydub; or convert the file to one that soundfile reads, with its suffix in lower case."
        raise UserError(what, path, fix) from error
    segment = AudioSegment.from_file(path)
    if offset is not None and offset > 0:
        segment = segment[int(offset * 1000) :]
    if duration is not None and duration > 0:
        segment = segment[: int(duration * 1000)]
    samples = np.array(segment.get_array_of_samples())
    return samples.reshape(-1, segment.channels) if segment.channels > 1 else samples, segment.frame_rate


def _finish(samples: np.ndarray[Any, Any], rate: int, how: Decoding) -> Samples:
    """To float32, one channel, the wanted rate, without silence at the ends; in this order."""
    samples = _select_channel(_to_float32(samples), how.channel_selector)
    if rate != how.sample_rate:
        import librosa  # slow to import, and most corpora need no resampling

        samples = librosa.resample(samples.transpose(), orig_sr=rate, target_sr=how.sample_rate).transpose()
    if how.trim:
        import librosa

        trimmed, _ = librosa.effects.trim(samples.transpose(), top_db=60, ref=np.max, frame_length=2048, hop_length=512)
        samples = trimmed.transpose()
    return samples


def _to_float32(samples: np.ndarray[Any, Any]) -> Samples:
    result = samples.astype(np.float32)
    if np.issubdtype(samples.dtype, np.integer):
        result *= 1.0 / 2 ** (np.iinfo(samples.dtype).bits - 1)
    return result


def _select_channel(samples_TC: Samples, selector: Any) -> Samples:
    if samples_TC.ndim == 1:
        refuse_channels(1, selector)
        return samples_TC
    if selector is None:
        return samples_TC
    refuse_channels(samples_TC.shape[-1], selector)
    if selector == "average":
        return np.mean(samples_TC, axis=-1)
    return samples_TC[..., selector if isinstance(selector, int) else selector[0]]


def _choose(files: list[str], selector: Any) -> tuple[list[str], Any]:
    """Of several single-channel files, those to read, and what is then left to select."""
    if not isinstance(selector, int):
        return files, selector
    if selector >= len(files):
        raise AudioProblem(f"{len(files)} files, and channel_selector={selector}", "Choose a channel that is there.")
    return [files[selector]], None


# --- what is wrong with a file ----------------------------------------------------------------------------------------


def _why_not_opened(path: str) -> AudioProblem:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return AudioProblem("no such audio file", "Check the path; it is looked up from the manifest's folder.")
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        return AudioProblem(f"an audio file that cannot be opened ({reason})", "Check the path and its permissions.")
    if size == 0:
        return AudioProblem("an empty audio file", "Copy it again, or take its line out of the manifest.")
    return AudioProblem("not an audio file that can be read", "Convert it to WAV, FLAC, OGG or MP3.")


def _channels(path: str, offset: Any, duration: Any) -> int:
    with open_audio(path) as file:
        _refuse_truncated(file, path, offset, duration)
        return file.channels


def _refuse_truncated(file: soundfile.SoundFile, path: str, offset: Any, duration: Any) -> None:
    rate = file.samplerate
    if file.format in ("WAV", "WAVEX") and file.subtype.startswith(("PCM_", "FLOAT", "DOUBLE")):
        promised = _wav_frames_promised(path)
        if promised is not None and promised > file.frames:
            raise _truncated(file.frames / rate, promised / rate)
    start = _frames(offset, rate)
    if start > file.frames:
        what = f"offset {offset:g} s lies beyond the end ({file.frames / rate:.3f} s)"
        raise AudioProblem(what, "Correct the manifest, or copy the file again if it is truncated.")
    if duration is not None and duration > 0:
        _refuse_short(file.frames - start, int(duration * rate), rate)


def _refuse_short(frames: int, promised: int, rate: int) -> None:
    missing = promised - frames
    if missing > MISSING_SECONDS * rate and missing > MISSING_PART * promised:
        raise _truncated(frames / rate, promised / rate)


def _truncated(seconds: float, promised: float) -> AudioProblem:
    what = f"a truncated audio file ({seconds:.2f} s where {promised:.2f} s are promised)"
    return AudioProblem(what, "Copy it again, or correct its duration in the manifest.")


def _frames(seconds: Any, rate: int) -> int:
    return int(seconds * rate) if seconds is not None and seconds > 0 else 0


def _wav_frames_promised(path: str) -> int | None:
    """Frames by the header's size of the data chunk (libsndfile silently takes the file's end); None if not told."""
    with open(path, "rb") as file:
        riff = file.read(12)
        if len(riff) < 12 or riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            return None
        block = 0
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                return size // block if block and size < UNKNOWN_WAV_SIZE else None
            start = file.tell()
            if name == b"fmt " and size >= 14:
                block = struct.unpack("<12xH", file.read(14))[0]
            file.seek(start + size + size % 2)
    return None
