"""Sums of rows and facts of numbers, each in one pass over memory that a cache holds. See `recording.row_sums`."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import float32, float64, int16, int32, void
from numpy.typing import NDArray

from nest_ssl.kernels.jit import jit

Sums: TypeAlias = NDArray[np.int32]
Words: TypeAlias = NDArray[np.int16]
LANES = 64  # numbers side by side: so many that vector registers have work while others wait for their sums


@jit(void(int32[:, ::1], int16[::1], int16[::1]))
def sums_of_rows(sums: Sums, words: Words, keys: Words) -> None:
    """Into sums[row, s] the sum over i of `words[i]` of that row times `keys[i + s]`, modulo 2 ** 32."""
    length = len(keys) - sums.shape[1] + 1
    for row in range(len(sums)):
        own = words[row * length : (row + 1) * length]
        for s in range(sums.shape[1]):
            shifted = keys[s : s + length]
            total = np.int32(0)
            for i in range(length):
                total = np.int32(total + np.int32(own[i]) * np.int32(shifted[i]))
            sums[row, s] = total


def facts(found: NDArray[np.float64], numbers: NDArray[Any]) -> None:
    """Least, most and sum of squares of what is a number, and how many are none; at least one number is given."""
    least, most = np.empty(LANES, numbers.dtype), np.empty(LANES, numbers.dtype)
    squares = np.empty(LANES, np.float64)
    least[:], most[:], squares[:] = np.inf, -np.inf, 0.0
    for first in range(0, len(numbers), LANES):
        some = numbers[first : first + LANES]
        for i in range(len(some)):
            x = some[i]
            least[i] = x if x < least[i] else least[i]
            most[i] = x if x > most[i] else most[i]
            squares[i] += np.float64(x) * np.float64(x)
    found[0], found[1], found[2], found[3] = least.min(), most.max(), squares.sum(), 0.0
    if np.isnan(found[2]):
        found[2] = 0.0
        for x in numbers:
            if np.isnan(x):
                found[3] += 1.0
            else:
                found[2] += np.float64(x) * np.float64(x)


facts_of_float32 = jit(void(float64[::1], float32[::1]))(facts)
facts_of_float64 = jit(void(float64[::1], float64[::1]))(facts)
