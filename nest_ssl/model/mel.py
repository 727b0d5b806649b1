"""Triangular filters on Slaney's mel scale, with the bits of `librosa.filters.mel`, which NeMo calls.

Written out here, for importing librosa takes longer than building the rest of a model: it brings numba along.

Shapes: F mel bands, E = F + 2 edges of bands, K STFT bins.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# Linear up to the corner in hertz, then logarithmic: 27 mels for a factor of 6.4.
HERTZ_OF_MEL, CORNER = 200.0 / 3, 1000.0
CORNER_MEL, LOG_STEP = CORNER / HERTZ_OF_MEL, np.log(6.4) / 27.0


def mel_filters(
    sample_rate: float, n_fft: int, features: int, fmin: float, fmax: float, norm: Literal["slaney"] | None
) -> NDArray[np.float32]:
    """The weight of each STFT bin in each band, (F, K) in float32.

    Args:
        fmin, fmax: between which the bands are, in hertz.
        norm: `slaney` divides each filter by the width of its band.
    """
    edges_E = hertz(np.linspace(mel(fmin), mel(fmax), features + 2))
    ramps_EK = np.subtract.outer(edges_E, np.fft.rfftfreq(n=n_fft, d=1.0 / sample_rate))
    widths = np.diff(edges_E)[:, np.newaxis]
    rising_FK, falling_FK = -ramps_EK[:-2] / widths[:-1], ramps_EK[2:] / widths[1:]
    weights_FK: NDArray[np.float32] = np.maximum(0, np.minimum(rising_FK, falling_FK)).astype(np.float32)
    if norm == "slaney":
        weights_FK *= (2.0 / (edges_E[2:] - edges_E[:-2]))[:, np.newaxis]
    if not np.all((edges_E[:-2] == 0) | (weights_FK.max(axis=1) > 0)):
        warnings.warn("some mel bands hold no STFT bin: take fewer bands, or a larger n_fft", stacklevel=2)
    return weights_FK


def mel(frequency: float) -> Any:
    """Of a frequency in hertz."""
    if frequency < CORNER:
        return frequency / HERTZ_OF_MEL
    return CORNER_MEL + np.log(frequency / CORNER) / LOG_STEP


def hertz(mels_E: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of mels."""
    hertz_E, beyond_E = HERTZ_OF_MEL * mels_E, mels_E >= CORNER_MEL
    hertz_E[beyond_E] = CORNER * np.exp(LOG_STEP * (mels_E[beyond_E] - CORNER_MEL))
    return hertz_E
