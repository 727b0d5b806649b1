"""Utterances changed as they are read: louder, later, faster, noisier, stretched, cut out (`augmentor`).

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.parts.preprocessing.perturb`. Whether one happens, and how, is
drawn from Python's global generator; how white noise is, from NumPy's.

Legend: T samples.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nest_ssl.config.perturbations import (
    Gain,
    Perturbation,
    Segment,
    Shift,
    Silence,
    Speed,
    Tempo,
    TimeStretch,
    WhiteNoise,
)
from nest_ssl.data.channels import Samples
from nest_ssl.data.vocoder import vocoded
from nest_ssl.releases import Generation

log = logging.getLogger(__name__)


class Perturbations:
    """All of a section, in its order. When it is made, a generator is seeded for each that has an `rng`, as in NeMo.

    Args:
        settings: by their names; None or none: audio stays as it is, and nothing is drawn.
        rate: of the audio, Hz.
        differences: of the generation of NeMo.
    """

    def __init__(self, settings: Mapping[str, Perturbation] | None, rate: int, differences: Generation) -> None:
        self.settings, self.rate, self.far_shift = list((settings or {}).values()), rate, differences.far_shift
        for each in self.settings:
            if each.rng:
                (np.random if isinstance(each, WhiteNoise) else random).seed(each.rng)

    def __call__(self, samples_T: Samples) -> Samples:
        """The samples, changed in place or others."""
        for each in self.settings:
            if random.random() < each.prob:
                samples_T = PERTURBED[type(each)](each, samples_T, self)
        return samples_T


def with_gain(settings: Gain, samples_T: Samples, of: Perturbations) -> Samples:
    gained: Samples = samples_T * (10.0 ** (random.uniform(settings.min_gain_dbfs, settings.max_gain_dbfs) / 20.0))
    return gained


def shifted(settings: Shift, samples_T: Samples, of: Perturbations) -> Samples:
    """Zeros where nothing is left: at the end of audio that comes earlier, which is a shift above 0."""
    milliseconds, longest = (
        random.uniform(settings.min_shift_ms, settings.max_shift_ms),
        len(samples_T) / of.rate * 1000,
    )
    if abs(milliseconds) > longest:
        if of.far_shift == "ignored":
            return samples_T
        milliseconds = max(-longest, min(milliseconds, longest))
    shift = int(milliseconds * of.rate // 1000)
    if shift < 0:
        samples_T[-shift:] = samples_T[:shift]
        samples_T[:-shift] = 0
    elif shift > 0:
        samples_T[:-shift] = samples_T[shift:]
        samples_T[-shift:] = 0
    return samples_T


def with_silence(settings: Silence, samples_T: Samples, of: Perturbations) -> Samples:
    """In float64: the silence is."""
    ranges = (
        (settings.min_start_silence_secs, settings.max_start_silence_secs),
        (settings.min_end_silence_secs, settings.max_end_silence_secs),
    )
    start, end = [np.full(int(random.uniform(*each) * of.rate), float(settings.value)) for each in ranges]
    return np.concatenate([start, samples_T, end])


def with_white_noise(settings: WhiteNoise, samples_T: Samples, of: Perturbations) -> Samples:
    level = np.random.randint(int(settings.min_level), int(settings.max_level), dtype="int32")
    samples_T += np.random.randn(len(samples_T)) * (10.0 ** (level / 20.0))
    return samples_T


def drawn_rate(settings: Tempo) -> float:
    slowest, fastest = settings.min_speed_rate, settings.max_speed_rate
    if settings.num_rates < 0:
        return random.uniform(slowest, fastest)
    rate: float = random.choice(np.linspace(slowest, fastest, settings.num_rates, endpoint=True))  # type: ignore[arg-type]
    return rate


def resampled(settings: Speed, samples_T: Samples, of: Perturbations) -> Samples:
    """At another rate, and taken for the old one; audio that cannot be resampled stays as it is."""
    if (speed := drawn_rate(settings)) == 1.0:
        return samples_T
    import librosa  # slow to import

    rate = int(settings.sr * speed)
    try:
        return librosa.resample(samples_T, orig_sr=settings.sr, target_sr=rate, res_type=settings.resample_type)
    except Exception as error:  # noqa: BLE001  (as NeMo does, whatever it is)
        log.warning("audio that cannot be resampled from %d to %d Hz stays as it is: %s", settings.sr, rate, error)
        return samples_T


def stretched(settings: TimeStretch, samples_T: Samples, of: Perturbations) -> Samples:
    """So much longer or shorter, by its spectrum; of audio that becomes slower, one of twice the size."""
    if (rate := drawn_rate(settings)) == 1.0:
        return samples_T
    import librosa  # slow to import

    faster = rate >= 1.0
    hop = settings.n_fft // 2 if faster else settings.n_fft // 2 * 2
    n_fft = settings.n_fft if faster else settings.n_fft * 2
    last = hop if faster else settings.n_fft  # one less than bins
    spectrum_FN = librosa.stft(samples_T, n_fft=n_fft, hop_length=hop)
    spectrum_FM = vocoded(spectrum_FN, rate, np.linspace(0, np.pi * last, last + 1))
    length = round(len(samples_T) / rate)
    return librosa.istft(spectrum_FM, hop_length=hop, dtype=samples_T.dtype, length=length)


def cut_out(settings: Segment, samples_T: Samples, of: Perturbations) -> Samples:
    """A stretch of the audio, drawn again while it is too quiet; shorter audio stays as it is."""
    seconds, least = len(samples_T) / of.rate, settings.min_rms_db
    if settings.duration_sec > seconds:
        return samples_T
    for _ in range(1 if least is None else 1 + settings.max_trials):
        start = random.uniform(0.0, seconds - settings.duration_sec)
        cut = samples_T[round(start * of.rate) : round((start + settings.duration_sec) * of.rate)]
        if least is None or not 10 * np.log10(np.mean(cut**2)) < least:
            break
    return cut


PERTURBED: dict[type[Perturbation], Callable[[Any, Samples, Perturbations], Samples]] = {
    Gain: with_gain,
    Shift: shifted,
    Silence: with_silence,
    WhiteNoise: with_white_noise,
    Speed: resampled,
    TimeStretch: stretched,
    Segment: cut_out,
}
