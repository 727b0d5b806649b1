"""A phase vocoder: audio slower or faster at its own pitch.

The bits depend on what computes them: of four bins in ten numba's angle is not NumPy's. NeMo's kernel is compiled by
numba, so this one is too, with the types that NeMo's expressions have there: angles, and the phase that goes on from
frame to frame, in the spectrum's precision, all else in float64.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.parts.utils.numba_utils.phase_vocoder`, after librosa's.

Legend: F bins, N frames, M frames of the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
TWO_PI = 2.0 * np.pi


def vocoded(spectrum_FN: Array, rate: float, advance_F: Array) -> Array:
    """A spectrum that is `rate` times as fast.

    Args:
        spectrum_FN: complex64 or complex128.
        rate: above 0.
        advance_F: the phase by which each bin goes on from frame to frame, float64.

    Returns:
        [F, M] of the same type, where M is N / rate, rounded up.
    """
    times_M = np.arange(0, spectrum_FN.shape[1], rate, dtype=np.float64)
    result_FM = np.zeros((len(spectrum_FN), len(times_M)), spectrum_FN.dtype, order="F")
    phase_F = np.angle(spectrum_FN[:, 0])  # NumPy's: the first phases, in NeMo as well
    _kernel()(np.pad(spectrum_FN, ((0, 0), (0, 2))), times_M, advance_F, phase_F, result_FM)
    return result_FM


@functools.cache
def _kernel() -> Callable[[Array, Array, Array, Array, Array], None]:
    """Compiled when it is first called, which takes a second; numba itself is slow to import."""
    import numba

    compiled: Callable[[Array, Array, Array, Array, Array], None] = numba.njit(nogil=True)(_go_through)
    return compiled


def _go_through(padded_FN: Array, times_M: Array, advance_F: Array, phase_F: Array, result_FM: Array) -> None:
    """Write `result_FM`; `phase_F` goes on with it."""
    for frame, time in enumerate(times_M):
        before, part = int(time), np.mod(time, 1.0)
        one_F, other_F = padded_FN[:, before], padded_FN[:, before + 1]
        angle_F = np.angle(other_F) - np.angle(one_F)  # of arrays: numba's angle of one number is a float64
        for k in range(len(phase_F)):
            magnitude = (1.0 - part) * np.abs(one_F[k]) + part * np.abs(other_F[k])
            result_FM[k, frame] = magnitude * np.exp(1.0j * phase_F[k])
            step = angle_F[k] - advance_F[k]
            turns = np.float32(np.rint(step / TWO_PI))
            phase_F[k] += advance_F[k] + (step - TWO_PI * turns)
