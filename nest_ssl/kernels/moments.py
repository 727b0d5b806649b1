"""AdamW's elementwise operations in two passes over a piece of a parameter, on both sides of its square root.

The square root itself is left to torch, whose library rounds it otherwise than the processor does.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import float32, void
from numba.extending import intrinsic
from numpy.typing import NDArray

from nest_ssl.kernels.jit import jit

Floats: TypeAlias = NDArray[np.float32]
FLOATS = float32[::1]


@intrinsic  # type: ignore[untyped-decorator]
def product_and_sum(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, as torch's `lerp_` and `addcmul_` round it."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.fma(*given)

    return a(a, b, c), generate


@jit(void(FLOATS, FLOATS, FLOATS, float32, float32, float32))
def update_moments(
    mean: Floats, square: Floats, gradient: Floats, toward: np.float32, beta2: np.float32, share: np.float32
) -> None:
    """`mean.lerp_(gradient, toward)` and `square.mul_(beta2).addcmul_(gradient, gradient, value=share)`."""
    for i in range(len(gradient)):
        mean[i] = product_and_sum(toward, gradient[i] - mean[i], mean[i])
        square[i] = product_and_sum(share * gradient[i], gradient[i], square[i] * beta2)


@jit(void(FLOATS, FLOATS, FLOATS, float32, float32, float32, float32))
def update_parameter(
    parameter: Floats,
    mean: Floats,
    root: Floats,
    kept: np.float32,
    correction: np.float32,
    eps: np.float32,
    size: np.float32,
) -> None:
    """`parameter.mul_(kept).addcdiv_(mean, root.div(correction).add_(eps), value=size)`."""
    for i in range(len(parameter)):
        parameter[i] = parameter[i] * kept + size * mean[i] / (root[i] / correction + eps)
