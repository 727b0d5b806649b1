"""What attention does with a number for each pair of frames, in one pass over memory each.

Shapes: N utterances x heads, B utterances, T frames, P = 2 T - 1 distances: frame j is T - 1 - i + j of those from i.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import float32, uint8, void
from numpy.typing import NDArray

from nest_ssl.kernels.jit import jit

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]
FLOATS, BYTES = float32[:, :, ::1], uint8[:, :, ::1]
ZERO = np.float32(0)


@jit(void(FLOATS, FLOATS, BYTES, float32, float32))
def score(scores: Floats, distances: Floats, masked: Bytes, divisor: np.float32, least: np.float32) -> None:
    """To `scores` (N, T, T) add those by distance (N, T, P), divide, and set what is masked (B, T, T) to `least`, in
    place."""
    count, frames, _ = scores.shape
    for n in range(count):
        for i in range(frames):
            row, by_distance, hidden = (
                scores[n, i],
                distances[n, i, frames - 1 - i :],
                masked[n * len(masked) // count, i],
            )
            for j in range(frames):
                row[j] = least if hidden[j] else (row[j] + by_distance[j]) / divisor


@jit(void(FLOATS, FLOATS, BYTES, BYTES, float32))
def drop(out: Floats, x: Floats, kept: Bytes, masked: Bytes, factor: np.float32) -> None:
    """Into `out` what dropout makes of `x` (N, T, T), and zero where it is masked."""
    count, frames, _ = x.shape
    for n in range(count):
        for i in range(frames):
            row, given, drawn, hidden = out[n, i], x[n, i], kept[n, i], masked[n * len(masked) // count, i]
            for j in range(frames):
                row[j] = ZERO if hidden[j] else given[j] * (np.float32(drawn[j]) * factor)


@jit(void(FLOATS, FLOATS, BYTES, float32))
def unscore(by_distance: Floats, d: Floats, masked: Bytes, divisor: np.float32) -> None:
    """Gradients of scores back: zero where masked, and divided, in place; by distance too, zero where there is no pair
    of frames so far apart."""
    count, frames, _ = d.shape
    for n in range(count):
        for i in range(frames):
            row, hidden, before = d[n, i], masked[n * len(masked) // count, i], frames - 1 - i
            by_distance[n, i, :before] = ZERO
            by_distance[n, i, before + frames :] = ZERO
            pairs = by_distance[n, i, before : before + frames]
            for j in range(frames):
                row[j] = (ZERO if hidden[j] else row[j]) / divisor
            for j in range(frames):
                pairs[j] = row[j]
