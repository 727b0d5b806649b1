"""AdamW's elementwise operations: in two passes over a piece of a parameter, with torch's square root between them, or
all in one, with a compiled square root.

That one is what torch's library, MKL, does on processors of which it knows nothing more than SSE (seen on an AMD
EPYC): an approximation, one step of Newton's for it and its inverse, and what is missing to the square, each operation
rounded. Of 100 roots 17 are not the nearest.
"""

from __future__ import annotations

import platform
from typing import Any, TypeAlias

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import boolean, float32, types, void
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic
from numpy.typing import NDArray

from nest_ssl.kernels.jit import jit

Floats: TypeAlias = NDArray[np.float32]
FLOATS = float32[::1]
BLOCK = 512  # elements at a time, which the first cache holds with their gradient and moments
# Roots of numbers beyond these, as of zero, are the nearest.
SMALLEST, LARGEST = np.float32(2.0**-126), np.float32((2 - 2.0**-11) * 2.0**127)
HALF = np.float32(0.5)

HAS_SSE = platform.machine().lower() in ("x86_64", "amd64")


@intrinsic  # type: ignore[untyped-decorator]
def product_and_sum(_: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once, as torch's `lerp_` and `addcmul_` round it."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.fma(*given)

    return a(a, b, c), generate


@intrinsic  # type: ignore[untyped-decorator]
def approximate_inverse_roots_of_4(_: Any, x: Any, first: Any) -> Any:
    """In place of x[first : first + 4], by RSQRTPS. Where there is no SSE nothing is done, for an instruction that LLVM
    does not know would end the process: roots that come out otherwise are found when they are tried."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if not HAS_SSE:
            return context.get_dummy_value()
        four = ir.VectorType(ir.FloatType(), 4)
        begin = context.make_array(signature.args[0])(context, builder, given[0]).data
        place = builder.bitcast(builder.gep(begin, [given[1]]), four.as_pointer())
        rsqrt = get_or_insert_function(builder.module, ir.FunctionType(four, [four]), "llvm.x86.sse.rsqrt.ps")
        builder.store(builder.call(rsqrt, [builder.load(place, align=4)]), place, align=4)
        return context.get_dummy_value()

    return types.void(x, first), generate


@jit(float32(float32, float32))
def root_by_steps(x: np.float32, inverse: np.float32) -> np.float32:
    """The square root of `x` by MKL's steps from an approximate inverse."""
    root, half = x * inverse, inverse * HALF
    missing = HALF - root * half
    root, half = root * missing + root, half * missing + half
    nearer: np.float32 = (x - root * root) * half + root
    return nearer


@jit(boolean(float32))
def is_stepped(x: np.float32) -> bool:
    return bool(x >= SMALLEST) and bool(x <= LARGEST)


@jit(void(FLOATS, FLOATS))
def square_roots(roots: Floats, x: Floats) -> None:
    """Into `roots`, whose length is a multiple of four and at least x's."""
    stepped = True
    for i in range(len(x)):
        roots[i] = x[i]
        stepped &= is_stepped(x[i])
    for i in range(0, len(roots), 4):
        approximate_inverse_roots_of_4(roots, i)
    if stepped:
        for i in range(len(x)):
            roots[i] = root_by_steps(x[i], roots[i])
    else:
        for i in range(len(x)):
            roots[i] = root_by_steps(x[i], roots[i]) if is_stepped(x[i]) else np.sqrt(x[i])


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


@jit(void(FLOATS, FLOATS, FLOATS, FLOATS, float32, float32, float32, float32, float32, float32, float32))
def update(
    parameter: Floats,
    gradient: Floats,
    mean: Floats,
    square: Floats,
    toward: np.float32,
    beta2: np.float32,
    share: np.float32,
    kept: np.float32,
    correction: np.float32,
    eps: np.float32,
    size: np.float32,
) -> None:
    """All of it, in place: `update_moments`, `square_roots` and `update_parameter`."""
    roots = np.empty(BLOCK, np.float32)
    for first in range(0, len(parameter), BLOCK):
        last = min(first + BLOCK, len(parameter))
        mean_block, square_block = mean[first:last], square[first:last]
        update_moments(mean_block, square_block, gradient[first:last], toward, beta2, share)
        square_roots(roots, square_block)
        update_parameter(parameter[first:last], mean_block, roots, kept, correction, eps, size)
