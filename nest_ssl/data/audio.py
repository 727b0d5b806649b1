"""An audio file -> mono float32 samples at the wanted rate, with NeMo's bits.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.parts.preprocessing.segment.AudioSegment.from_file`. The
decoder (libsndfile through soundfile) and the resampler and trimmer (librosa, soxr) are the ones that NeMo calls.

Legend: T samples, C channels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import soundfile

from nest_ssl.config.data import Dataset
from nest_ssl.data.channels import Samples, choose_files, refuse_channels, select_channel
from nest_ssl.data.header import (
    FLOATING,
    frames,
    open_audio,
    refuse_rate,
    refuse_short,
    refuse_truncated,
    refuse_unreadable,
)
from nest_ssl.data.problems import AudioProblem, ReaderProblem, UnfitAudio

Reader = Literal["soundfile", "pydub"]
Decoded = np.ndarray[Any, Any]  # [T] or [T, C], of the decoder's type


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
    reader: Reader = "soundfile"

    @classmethod
    def of(cls, dataset: Dataset, sample_rate: int, reader: Reader = "soundfile") -> Decoding:
        """The decoding of a section's utterances; `sample_rate` is the model's, used where the section gives none."""
        return cls(
            sample_rate=dataset.sample_rate or sample_rate,
            int_values=dataset.int_values,
            trim=dataset.trim_silence,
            channel_selector=dataset.channel_selector,
            strict=True,
            reader=reader,
        )


def load(audio_file: str | list[str] | bytes, offset: Any, duration: Any, decoding: Decoding) -> Samples:
    """A piece of a recording, float32 in [-1, 1].

    Args:
        audio_file: a file, or several single-channel files that are one recording; or the bytes of a file.
        offset: seconds from the start, None for 0.
        duration: seconds; None, 0 or less for all.
        decoding: see `Decoding`.

    Returns:
        [T], or [T, C] when several channels are left.

    Raises:
        AudioProblem: the file is truncated (`strict`), its channels do not suit, it cannot or must not be read.
        Exception: whatever the decoder and the resampler raise.
    """
    if not isinstance(audio_file, list):
        samples, rate = _read(audio_file, offset, duration, decoding)
        return _finish(samples, rate, decoding)
    files, selector = choose_files(audio_file, decoding.channel_selector)
    single = replace(decoding, trim=False, channel_selector=None)
    channels_T = [load(path, offset, duration, single) for path in files]
    for samples in channels_T:
        refuse_channels(samples.shape[-1] if samples.ndim == 2 else 1, None)
    joined_TC = np.squeeze(np.stack(channels_T, axis=1))
    return _finish(joined_TC, decoding.sample_rate, replace(decoding, channel_selector=selector))


def decoder_errors() -> tuple[type[Exception], ...]:
    """What NeMo's readers raise over a file: soundfile; before 3.0 pydub too, which may find no program to decode."""
    pydub = sys.modules.get("pydub.exceptions")  # only those that use it have imported it
    return (soundfile.SoundFileError, OSError, *([pydub.PydubException] if pydub else []))


def _read(path: str | bytes, offset: Any, duration: Any, decoding: Decoding) -> tuple[Decoded, int]:
    """The decoder's samples and the file's own rate in Hz."""
    if isinstance(path, bytes):
        return _read_with_soundfile(path, offset, duration, decoding)
    if decoding.reader == "pydub":  # which reads what has no suffix of soundfile's in lower case
        listed = {f".{name.lower()}" for name in soundfile.available_formats()}
        try:
            if os.path.splitext(path)[1] not in listed:
                return _read_with_pydub(path, offset, duration)
        except FileNotFoundError as error:  # the file is there: it is ffmpeg that is not
            fix = "Install ffmpeg; or convert the file to one that soundfile reads, with its suffix in lower case."
            raise ReaderProblem("pydub needs ffmpeg for this audio file, and there is none here", fix) from error
    try:
        return _read_with_soundfile(path, offset, duration, decoding)
    except (ReaderProblem, UnfitAudio):
        raise
    except (AudioProblem, RuntimeError):
        if decoding.reader != "pydub" or decoding.strict or not os.path.exists(path):
            raise
        return _read_with_pydub(path, offset, duration)


def _read_with_soundfile(path: str | bytes, offset: Any, duration: Any, decoding: Decoding) -> tuple[Decoded, int]:
    dtype = "int32" if decoding.int_values else "float32"
    with open_audio(path) as file:
        if decoding.strict:
            refuse_truncated(file, path, offset, duration)
        promised = file.frames - frames(offset, file.samplerate)
        if offset is not None and offset > 0:
            file.seek(int(offset * file.samplerate))
        if duration is not None and duration > 0:
            promised = min(promised, int(duration * file.samplerate))
            samples = file.read(int(duration * file.samplerate), dtype=dtype)
        else:
            samples = file.read(dtype=dtype)
        if decoding.strict:
            refuse_short(len(samples), promised, file.samplerate)
        if file.subtype in FLOATING and not np.isfinite(samples).all():
            what = "an audio file with samples that are no numbers (NaN or infinite)"
            raise UnfitAudio(what, "Convert it again, or take its line out of the manifest.")
        return samples, file.samplerate


def _read_with_pydub(path: str, offset: Any, duration: Any) -> tuple[Decoded, int]:
    """Integers of the file's own width, cut at whole milliseconds."""
    refuse_unreadable(path)
    try:
        from pydub import AudioSegment
    except ImportError as error:
        what = "NeMo before 3.0 reads this audio file through pydub, which is not installed here"
        fix = "Install pydub; or convert the file to one that soundfile reads, with its suffix in lower case."
        raise ReaderProblem(what, fix) from error
    segment = AudioSegment.from_file(path)
    refuse_rate(segment.frame_rate)
    if offset is not None and offset > 0:
        segment = segment[int(offset * 1000) :]
    if duration is not None and duration > 0:
        segment = segment[: int(duration * 1000)]
    samples = np.array(segment.get_array_of_samples())
    return samples.reshape(-1, segment.channels) if segment.channels > 1 else samples, segment.frame_rate


def _finish(samples: Decoded, rate: int, decoding: Decoding) -> Samples:
    """To float32, one channel, the wanted rate, without silence at the ends; in this order: bits depend on it."""
    converted = samples.astype(np.float32)
    if np.issubdtype(samples.dtype, np.integer):
        converted *= 1.0 / 2 ** (np.iinfo(samples.dtype).bits - 1)
    converted = select_channel(converted, decoding.channel_selector)
    if rate != decoding.sample_rate:
        import librosa  # slow to import, and most corpora need no resampling

        converted = librosa.resample(converted.transpose(), orig_sr=rate, target_sr=decoding.sample_rate).transpose()
    if decoding.trim:
        import librosa

        trim = librosa.effects.trim
        converted = trim(converted.transpose(), top_db=60, ref=np.max, frame_length=2048, hop_length=512)[0].transpose()
    return converted
