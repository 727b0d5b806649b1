"""Noise for an utterance: a random piece of a random clip, drawn from NumPy's global generator as NeMo draws it.

Draws: `randint` for the clip; `uniform` for where it starts, if it is longer than the utterance; `randint` and `randn`
of white noise only for a piece that adds up to zero. A clip that cannot be read costs its draws, and another is drawn.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.data.ssl_dataset.sample_noise` and `load_noise_audio`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from nest_ssl.data.audio import Decoding, Reader, load
from nest_ssl.data.batch import fit
from nest_ssl.data.channels import Samples
from nest_ssl.data.manifest import NoiseClip
from nest_ssl.data.problems import ReaderProblem, UnfitAudio, as_user_error

CLIP_TRIALS = 20  # clips drawn before the utterance is left without noise
PIECE_TRIALS = 100  # pieces of one clip drawn before a poor one is taken
WHITE_NOISE_DB = (-90, -46)

log = logging.getLogger(__name__)


def draw_noise(
    clips: Sequence[NoiseClip], sample_rate: int, length: int, reader: Reader = "soundfile"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise for `length` samples of speech.

    Args:
        clips: to draw from; none gives zeros and draws nothing.
        sample_rate: Hz.
        length: samples, T.
        reader: see `audio.Decoding`.

    Returns:
        float32 [T], zero where a short clip has ended; and how many samples the clip lasts, int64 [].

    Raises:
        UserError: a clip that NeMo would train on and must not be (NaN); a decoder that is missing here.
    """
    for _ in range(CLIP_TRIALS if clips else 0):
        clip = clips[np.random.randint(len(clips))]
        try:
            noise = torch.tensor(_read_piece(clip, Decoding(sample_rate, reader=reader), length), dtype=torch.float)
            return fit(noise, length), torch.tensor(min(noise.size(0), length))
        except (ReaderProblem, UnfitAudio) as problem:
            raise as_user_error(problem, clip) from problem
        except Exception as error:  # noqa: BLE001 (whatever is wrong with a clip, NeMo goes on to draw another)
            log.warning("noise clip %s (%s) cannot be used, drawing another: %s", clip.audio_file, clip.place, error)
    if clips:
        log.warning("no usable noise clip in %d draws: this utterance has none", CLIP_TRIALS)
    return torch.zeros(length), torch.tensor(length)


def _read_piece(clip: NoiseClip, decoding: Decoding, length: int) -> Samples:
    seconds = length / decoding.sample_rate
    if clip.duration is not None and clip.duration > seconds:
        for _ in range(PIECE_TRIALS):
            offset = np.random.uniform(0, clip.duration - seconds)
            samples = load(clip.audio_file, offset, seconds, decoding)
            total = running_sum(samples)
            if total > 0:
                break
    else:
        samples = load(clip.audio_file, clip.offset, clip.duration, decoding)
        total = running_sum(samples)
    if total == 0:
        log.warning("noise clip %s (%s) is silent here: white noise instead", clip.audio_file, clip.place)
        level_db = np.random.randint(*WHITE_NOISE_DB, dtype="int32")
        samples += np.random.randn(samples.shape[0]) * (10.0 ** (level_db / 20.0))
    return samples


def running_sum(samples: Samples) -> np.float32:
    """Python's `sum` over float32 samples, with its rounding, 20 times faster.

    NeMo decides by the sign of that sum whether to draw again, so rounding matters: `np.sum` adds in pairs and may
    differ; `np.add.accumulate` adds one after another, as Python does.

    Raises:
        ValueError: more than one channel (NeMo fails here too, and draws another clip).
    """
    if samples.ndim != 1:
        raise ValueError(f"{samples.shape[-1]} channels; noise must have one")
    return np.add.accumulate(samples)[-1] if samples.size else np.float32(0)
