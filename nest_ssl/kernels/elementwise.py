"""Several elementwise operations in one pass over memory, where torch needs a pass for each."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import float32, uint8, void
from numpy.typing import NDArray

from nest_ssl.kernels.jit import jit

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]


@jit(void(float32[::1], float32[::1], uint8[::1], float32))
def scale_kept(out: Floats, x: Floats, kept: Bytes, factor: np.float32) -> None:
    """`x` where it is kept times `factor`, else times zero, into memory of its own."""
    for i in range(len(x)):
        out[i] = x[i] * (np.float32(kept[i]) * factor)


@jit(void(float32[::1], uint8[::1], float32))
def scale_kept_(x: Floats, kept: Bytes, factor: np.float32) -> None:
    """The same in place: a loop over two arrays is not vectorised where they overlap."""
    for i in range(len(x)):
        x[i] = x[i] * (np.float32(kept[i]) * factor)
