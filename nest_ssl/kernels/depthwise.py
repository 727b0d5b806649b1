"""Gradients of weight and bias of a depthwise convolution over time, each channel by itself, in 40 % of oneDNN's time.

For oneDNN a channel's weight is a product of a matrix and a vector, whose sums come in this order where a processor has
AVX2: eight lanes, added up by halves, then what is left.

Shapes: B batch, D channels, T frames that are read at once, K of the kernel.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import float32, void
from numpy.typing import NDArray

from nest_ssl.kernels.jit import jit
from nest_ssl.kernels.moments import product_and_sum

Floats: TypeAlias = NDArray[np.float32]
FLOATS_1, FLOATS_2, FLOATS_3 = float32[::1], float32[:, ::1], float32[:, :, ::1]
LANES = 8
PAIR = 2 * LANES  # frames of a pass of the product's loop: fewer are left to the end
ZERO = np.float32(0)


@jit(float32(FLOATS_1))
def together(lanes: Floats) -> np.float32:
    """The sum of eight, by halves."""
    total: np.float32 = ((lanes[0] + lanes[1]) + (lanes[4] + lanes[5])) + (
        (lanes[2] + lanes[3]) + (lanes[6] + lanes[7])
    )
    return total


@jit(void(FLOATS_2, FLOATS_1, FLOATS_3, FLOATS_3))
def gradients(weight_DK: Floats, bias_D: Floats, d_BDT: Floats, x_BDS: Floats) -> None:
    """Into `weight_DK` and `bias_D`, from the gradient of what was returned and from what was read, S = T + K - 1.

    A channel's frames of one utterance are added up in eight lanes, and what is left of them eight, four, two and one
    at a time.
    """
    batch, channels, frames = d_BDT.shape
    taps, whole = weight_DK.shape[1], frames - frames % PAIR
    lanes_KL, sums_B = np.empty((taps, LANES), np.float32), np.empty(batch, np.float32)
    for c in range(channels):
        weight_DK[c] = ZERO
        sums_B[:] = ZERO
        for t in range(frames):
            for n in range(batch):  # of which none waits for another one's sum
                sums_B[n] += d_BDT[n, c, t]
        bias_D[c] = ZERO
        for n in range(batch):
            bias_D[c] += sums_B[n]
        for n in range(batch):
            d, x = d_BDT[n, c], x_BDS[n, c]
            lanes_KL[:] = ZERO
            for t in range(0, frames - frames % PAIR, LANES):  # so written LLVM sees whole vectors
                for tap in range(taps):
                    for lane in range(LANES):
                        lanes_KL[tap, lane] = product_and_sum(d[t + lane], x[t + tap + lane], lanes_KL[tap, lane])
            for tap in range(taps):
                total, t = weight_DK[c, tap] + together(lanes_KL[tap]), whole
                if frames & 8:
                    for lane in range(LANES):
                        lanes_KL[tap, lane] = d[t + lane] * x[t + tap + lane]
                    total, t = total + together(lanes_KL[tap]), t + 8
                if frames & 4:
                    two = d[t] * x[t + tap] + d[t + 1] * x[t + tap + 1]
                    others = d[t + 2] * x[t + tap + 2] + d[t + 3] * x[t + tap + 3]
                    total, t = total + (two + others), t + 4
                if frames & 2:
                    total, t = total + (d[t] * x[t + tap] + d[t + 1] * x[t + tap + 1]), t + 2
                weight_DK[c, tap] = total + d[t] * x[t + tap] if frames & 1 else total
