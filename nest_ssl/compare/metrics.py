"""How far apart two tensors are whose bits differ. Everything is summed in float64, in pieces that fit the cache.

NaN and infinity are never averaged away: positions where only one side has them, or where infinities have unlike signs,
are counted, and the other measures run over positions where both sides are finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, dot, empty, finfo, float64
from torch.linalg import vector_norm

from nest_ssl.compare.bits import CHUNK, as_integers, as_real, chunks

Array = np.ndarray[Any, Any]
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
MOST_PLACES = 64
PLACES, SEVERAL = 8, 1000  # last places that constants leave a factor; elements whose rounding averages out
_BITS, _NUMBER, _NONFINITE = 1, 2, 3  # what a position shows; a higher one is shown first


@dataclass(slots=True)
class Metrics:
    """Of one pair of tensors of one shape and dtype. A measure that has no meaning is None."""

    elements: int
    differing: int = 0  # elements whose bits differ
    outside: int = 0  # elements beyond atol + rtol * |reference|, or that disagree on NaN or infinity
    ratio: float | None = None  # largest |candidate - reference| / (atol + rtol * |reference|)
    nonfinite_disagree: int = 0
    nan_reference: int = 0
    nan_candidate: int = 0
    max_abs: float | int | None = None
    relative: float | None = None  # |candidate - reference| / |reference|, Frobenius
    cosine: float | None = None
    factor: float | None = None  # by which the reference comes nearest to the candidate: 1 where no scale is wrong
    norm: float | None = None  # of the reference, Frobenius
    eps: float = 0.0  # what one unit in the last place may be, relative to the whole: it can always be off by that
    max_ulp: int | None = None
    index: tuple[int, ...] = ()  # where NaN or infinity disagree, else of the largest difference, else of unlike bits
    reference: float | int | bool | complex | None = None  # values at `index`
    candidate: float | int | bool | complex | None = None
    unused: tuple[int, int] = (0, 0)  # low bits of the significand that are zero in all values of each side
    places: tuple[tuple[int, ...], ...] = ()  # of whole numbers, all that differ; empty where they are many
    became: tuple[int, ...] = ()  # the candidate's values in these places
    row: float = 0.0  # of a validation, see `typical_row`


def is_scaled(metrics: Metrics | None, eps: float = 0.0) -> bool:
    """Whether most of a difference is one factor, further from 1 than the last places of a few constants make it.

    Args:
        eps: of a coarser type, which the numbers were worked out in.
    """
    if metrics is None or metrics.factor is None or metrics.relative is None or metrics.elements < SEVERAL:
        return False
    return abs(metrics.factor - 1) > max(PLACES * max(metrics.eps, eps), metrics.relative / 2)


def typical_row(reference: Tensor, candidate: Tensor) -> float:
    """How far apart, relative, the rows along the last dimension are: the median of those that are not zero.

    A few rows that rounding alone makes (channels of audio that has nothing there) outweigh the whole, and not this.
    """
    one, other = (side.to(float64).reshape(-1, *side.shape[-1:]) for side in (reference, candidate))
    apart = vector_norm(other - one, dim=-1) / vector_norm(one, dim=-1)  # not a number of what is zero
    return float(apart.nanmedian().nan_to_num())


def measure(reference: Tensor, candidate: Tensor, atol: float, rtol: float) -> Metrics:
    """Compare two tensors of one shape and dtype; call it only where their bits differ.

    Integers and booleans have no tolerance: every differing element is outside.
    """
    assert reference.shape == candidate.shape and reference.dtype == candidate.dtype
    floating = reference.is_floating_point() or reference.is_complex()
    sides = (as_real(reference), as_real(candidate)) if floating else (reference, candidate)
    eps = finfo(reference.dtype).eps if floating else 0.0
    sums = (_Floats if floating else _Integers)(Metrics(sides[0].numel(), eps=eps), (atol, rtol))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for piece, other in chunks(*sides):
            sums.add(piece, other)
            sums.start += piece.numel()
    metrics = sums.finish()
    metrics.index = tuple(int(place) for place in np.unravel_index(sums.worst[1], tuple(sides[0].shape)))
    metrics.reference, metrics.candidate = (side[metrics.index].item() for side in sides)
    if not floating and metrics.differing <= MOST_PLACES:
        unlike = sides[0] != sides[1]
        metrics.places = tuple(tuple(place) for place in unlike.nonzero().tolist())
        metrics.became = tuple(map(int, sides[1][unlike].tolist()))
    return metrics


@dataclass(slots=True)
class _Integers:
    """Running totals over pieces of two tensors of whole numbers or booleans."""

    metrics: Metrics
    bound: tuple[float, float]
    start: int = 0  # elements of the pieces before
    largest: int = 0
    worst: tuple[tuple[int, float], int] = ((0, 0.0), 0)  # (what it shows, how large), position; the first on a tie

    def show(self, what: int, size: float, position: int) -> None:
        if (what, size) > self.worst[0]:
            self.worst = (what, size), self.start + position

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        a, b = reference.numpy(), candidate.numpy()
        if count := int(np.count_nonzero(a != b)):
            distance = _distance(a.astype(np.int64), b.astype(np.int64))
            at = int(distance.argmax())
            self.show(_NUMBER, float(distance[at]), at)
            self.largest = max(self.largest, int(distance[at]))
            self.metrics.differing += count

    def finish(self) -> Metrics:
        self.metrics.outside, self.metrics.max_abs = self.metrics.differing, self.largest
        return self.metrics


@dataclass(slots=True)
class _Floats(_Integers):
    """Running totals over pieces of two tensors of real numbers."""

    used: tuple[int, int] = (0, 0)  # bits that are set in any value of each side
    squares: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # of the reference, the candidate, their product and difference
    # A piece of the reference, of the candidate and their difference, in memory that is used again.
    wide: tuple[Tensor, ...] = field(default_factory=lambda: empty(3, CHUNK, dtype=float64).unbind())

    def add(self, reference: Tensor, candidate: Tensor) -> None:
        metrics, (atol, rtol) = self.metrics, self.bound
        patterns = (as_integers(side).numpy() for side in (reference, candidate))
        bits = [side.view(_SIGNED[side.itemsize]) for side in patterns]
        if not self.used[0] & self.used[1] & 1:  # else neither has a low bit that is zero everywhere
            self.used = tuple(old | int(np.bitwise_or.reduce(side)) for old, side in zip(self.used, bits, strict=True))  # type: ignore[assignment]
        unlike = bits[0] ^ bits[1]
        count = int(np.count_nonzero(unlike))
        metrics.differing += count
        if count and self.worst[0] < (_BITS, 0.0):
            self.show(_BITS, 0.0, int((unlike != 0).argmax()))
        wide = self.wide if reference.numel() == CHUNK else [side[: reference.numel()] for side in self.wide]
        wide_a, wide_b, apart = wide
        a, b, difference = (side.numpy() for side in wide)
        wide_a.copy_(reference)
        wide_b.copy_(candidate)
        squares = _dot(wide_a, wide_a), _dot(wide_b, wide_b)
        if not all(map(math.isfinite, squares)):  # else no element is infinite or NaN
            finite = np.isfinite(a) & np.isfinite(b)
            metrics.nan_reference += int(np.count_nonzero(np.isnan(a)))
            metrics.nan_candidate += int(np.count_nonzero(np.isnan(b)))
            disagree = ~(finite | (np.isnan(a) & np.isnan(b)) | (a == b))
            if disagree.any():
                self.show(_NONFINITE, 0.0, int(disagree.argmax()))
            metrics.nonfinite_disagree += int(np.count_nonzero(disagree))
            metrics.outside += int(np.count_nonzero(disagree))
            if not finite.any():
                return
            a[~finite] = b[~finite] = 0
            bits = [np.where(finite, side, 0) for side in bits]
            unlike = bits[0] ^ bits[1]
            squares = _dot(wide_a, wide_a), _dot(wide_b, wide_b)
        np.abs(np.subtract(b, a, out=difference), out=difference)
        added = (*squares, _dot(wide_a, wide_b), _dot(apart, apart))
        self.squares = tuple(old + new for old, new in zip(self.squares, added, strict=True))
        at = int(difference.argmax())
        metrics.max_abs = max(metrics.max_abs or 0.0, float(difference[at]))
        if np.bitwise_or.reduce(unlike) < 0:
            distance = _distance(_ranks(bits[0]), _ranks(bits[1]))
        else:  # of like signs: their bit patterns are as far apart, and no difference of these overflows
            distance = np.abs(bits[0] - bits[1])
        metrics.max_ulp = max(metrics.max_ulp or 0, int(distance.max()))
        if difference[at] > 0:
            self.show(_NUMBER, float(difference[at]), at)
        if not (atol or rtol):
            metrics.outside += int(np.count_nonzero(difference > 0))  # of booleans: numbers take twice as long
            return
        allowed = atol + rtol * np.abs(a)
        metrics.outside += int(np.count_nonzero(difference > allowed))
        share = np.divide(difference, allowed, out=np.zeros_like(a), where=difference > 0)
        metrics.ratio = max(metrics.ratio or 0.0, float(share.max()))

    def finish(self) -> Metrics:
        if self.metrics.max_abs is not None:
            reference, candidate, product, difference = self.squares
            self.metrics.relative = _ratio(math.sqrt(difference), math.sqrt(reference))
            self.metrics.cosine = _ratio(product, math.sqrt(reference) * math.sqrt(candidate))
            self.metrics.norm = math.sqrt(reference)
            width = round(-math.log2(self.metrics.eps))
            self.metrics.unused = tuple(_low_zeros(used, width) for used in self.used)  # type: ignore[assignment]
            self.metrics.factor = product / reference if reference else None
        return self.metrics


def _low_zeros(bits: int, width: int) -> int:
    """How many of the lowest `width` bits are zero below the first that is set."""
    return width if bits & ((1 << width) - 1) == 0 else (bits & -bits).bit_length() - 1


def _dot(a: Tensor, b: Tensor) -> float:
    """NumPy's own would start threads for so few elements, which on a busy machine wait for each other."""
    return float(dot(a, b))


def _distance(a: Array, b: Array) -> Array:
    """|a - b| of signed integers as unsigned ones: wrapping arithmetic is right where signed would overflow."""
    unsigned = _UNSIGNED[a.itemsize]
    distance: Array = np.maximum(a, b).view(unsigned) - np.minimum(a, b).view(unsigned)
    return distance


def _ranks(bits: Array) -> Array:
    """Bit patterns of floats -> ranks in which neighbouring floats are neighbours; both zeros have rank 0."""
    sign = bits >> (8 * bits.itemsize - 1)  # 0 or -1
    ranks: Array = (bits ^ (sign & np.iinfo(bits.dtype).max)) - sign
    return ranks


def _ratio(numerator: float, denominator: float) -> float | None:
    if not denominator:
        return None if numerator == 0 else math.inf
    ratio = numerator / denominator
    return ratio if math.isfinite(ratio) else None
