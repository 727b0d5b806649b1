"""What an audio file's header says, and whether that can be true: regular, audio, long enough, a sampling rate.

Legend: C channels.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
from typing import Any, BinaryIO

import soundfile

from nest_ssl.data.channels import choose_files, refuse_channels
from nest_ssl.data.files import where_to_look
from nest_ssl.data.problems import AudioProblem, ReaderProblem, UnfitAudio

MISSING_SECONDS = 0.25  # a file is taken for truncated if it lacks this much of what its header or manifest
MISSING_PART = 0.05  # promises, and this part of it; less is rounding in a manifest
UNKNOWN_WAV_SIZE = 0x7FFF0000  # programs that write WAV to a pipe put a size like this
RATES = range(1_000, 1_000_001)  # Hz
FLOATING = ("FLOAT", "DOUBLE")  # subtypes that can hold NaN
OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def check_header(audio_file: str | list[str], offset: float | None, duration: float | None, selector: Any) -> bool:
    """Everything that `audio.load` would refuse (`strict`) and that can be known without decoding.

    Returns:
        Whether samples may turn out to be NaN or infinite, which only decoding shows.

    Raises:
        AudioProblem: see `audio.load`, and files that are not there, empty, or no audio.
    """
    several = isinstance(audio_file, list)
    files, left = choose_files(audio_file, selector) if isinstance(audio_file, list) else ([audio_file], selector)
    channels, floating = 0, False
    for path in files:
        with open_audio(path) as file:
            refuse_truncated(file, path, offset, duration)
            floating |= file.subtype in FLOATING
            if several:
                refuse_channels(file.channels, None)
            channels += file.channels
    refuse_channels(channels, left)
    return floating


def open_audio(source: str | bytes) -> soundfile.SoundFile:
    """Open a file, or what has been read of one out of an archive; the caller closes it.

    Raises:
        AudioProblem: says which: not there, not to be read, no regular file, empty, not audio, an impossible rate.
    """
    if isinstance(source, str):
        refuse_unreadable(source)
    try:
        file = soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (soundfile.SoundFileError, TypeError, ValueError) as error:  # TypeError: .raw, which has no header
        try:
            _stream(source).close()
        except OSError as refusal:
            raise as_problem(refusal) from refusal
        raise AudioProblem("not an audio file that can be read", "Convert it to WAV, FLAC, OGG or MP3.") from error
    try:
        refuse_rate(file.samplerate)
    except UnfitAudio:
        file.close()
        raise
    return file


def refuse_unreadable(path: str) -> None:
    """Refuse what is not a regular file with something in it; a pipe or a device may never end.

    Raises:
        AudioProblem: says which.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        fix = "Check the path; it is looked up from the manifest's folder."
        if "\\" in path:
            fix = "Write its path with forward slashes, as NeMo needs it."
        raise AudioProblem("no such audio file", where_to_look(fix)) from error
    except (OSError, ValueError) as error:
        raise as_problem(error) from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise AudioProblem(f"an audio file that cannot be opened ({what})", "Name a regular file.")
    if status.st_size == 0:
        raise AudioProblem("an empty audio file", "Copy it again, or take its line out of the manifest.")


def as_problem(error: OSError | ValueError) -> AudioProblem:
    """What the operating system says about a file; what it says about the machine is not the file's problem."""
    reason = os.strerror(error.errno or errno.EIO) if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
        return ReaderProblem(f"{reason}, while audio was read", "Free some, or raise the limit (ulimit).")
    return AudioProblem(f"an audio file that cannot be opened ({reason})", "Check the path and its permissions.")


def refuse_rate(rate: int) -> None:
    """Refuse a sampling rate, in Hz, that no recording has.

    Raises:
        UnfitAudio: resampling would take hours, or make hours of audio from seconds.
    """
    if rate not in RATES:
        what = f"an audio file with a sampling rate of {rate:,} Hz in its header"
        raise UnfitAudio(what, f"Correct its header ({RATES[0]:,} to {RATES[-1]:,} Hz), or copy the file again.")


def refuse_truncated(file: soundfile.SoundFile, source: str | bytes, offset: Any, duration: Any) -> None:
    """Refuse a file that lacks a part of what its header, or the manifest, promises.

    Raises:
        AudioProblem: with both lengths.
    """
    rate = file.samplerate
    if file.format in ("WAV", "WAVEX") and file.subtype.startswith(("PCM_", *FLOATING)):
        promised = _wav_frames_promised(source)
        if promised is not None and promised > file.frames:
            raise _truncated(file.frames / rate, promised / rate)
    start = frames(offset, rate)
    if start > file.frames:
        what = f"offset {offset:g} s lies beyond the end ({file.frames / rate:.3f} s)"
        raise AudioProblem(what, "Correct the manifest, or copy the file again if it is truncated.")
    if duration is not None and duration > 0:
        refuse_short(file.frames - start, int(duration * rate), rate)


def refuse_short(available: int, promised: int, rate: int) -> None:
    """Refuse so few frames where so many were promised.

    Raises:
        AudioProblem: with both lengths.
    """
    missing = promised - available
    if missing > MISSING_SECONDS * rate and missing > MISSING_PART * promised:
        raise _truncated(available / rate, promised / rate)


def frames(seconds: Any, rate: int) -> int:
    """As NeMo counts them: none before 0."""
    return int(seconds * rate) if seconds is not None and seconds > 0 else 0


def _truncated(seconds: float, promised: float) -> AudioProblem:
    what = f"a truncated audio file ({seconds:.2f} s where {promised:.2f} s are promised)"
    return AudioProblem(what, "Copy it again, or correct its duration in the manifest.")


def _stream(source: str | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _wav_frames_promised(source: str | bytes) -> int | None:
    """Frames by the size that the header gives the data chunk; None where it gives none.

    libsndfile takes the file's end for the end of the data and keeps what the header said to itself, and Python's
    `wave` reads no floating-point WAV; hence these few lines.
    """
    with _stream(source) as file:
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
