"""How far apart two tensors are whose bits differ. Everything is summed in float64, in pieces that fit the cache.

NaN and infinity are never averaged away: positions where only one side has them, or where infinities have unlike signs,
are counted, and the other measures run over positions where both sides are finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, float64

from nest_ssl.compare.bits import as_integers, as_real, chunks, unravel

Array = np.ndarray
_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(slots=True)
class Metrics:
    """Of one pair of tensors of one shape and dtype. A measure that has no meaning is None."""

    elements: int
    differing: int = 0  # elements whose bits differ
    outside: int = 0  # elements beyond the tolerance, or that disagree on NaN or infinity
    nonfinite_disagree: int = 0
    nan_reference: int = 0
    nan_candidate: int = 0
    max_abs: float | int | None = None
    relative: float | None = None  # |candidate - reference| / |reference|, Frobenius
    cosine: float | None = None
    max_ulp: int | None = None
    index: tuple[int, ...] = ()  # where NaN or infinity disagree, else of the largest difference, else of unlike bits
    reference: float | int | bool | None = None  # values at `index`
    candidate: float | int | bool | None = None


def measure(reference: Tensor, candidate: Tensor, atol: float, rtol: float) -> Metrics:
    """Compare two tensors of one shape and dtype; call it only where their bits differ.

    Integers and booleans have no tolerance: every differing element is outside.
    """
    assert reference.shape == candidate.shape
    assert reference.dtype == candidate.dtype
    if reference.is_floating_point() or reference.is_complex():
        return _measure_floats(as_real(reference), as_real(candidate), atol, rtol)
    return _measure_integers(reference, candidate)


@dataclass(slots=True)
class _Worst:
    """The position that shows the difference best: (class, size), higher wins, the first one on a tie."""

    rank: tuple[int, float] = (0, 0.0)
    position: int = -1

    def offer(self, kind: int, size: float, position: int) -> None:
        if (kind, size) > self.rank:
            self.rank, self.position = (kind, size), position


_BITS, _NUMBER, _NONFINITE = 1, 2, 3


def _pick(metrics: Metrics, worst: _Worst, reference: Tensor, candidate: Tensor) -> None:
    metrics.index = unravel(worst.position, reference.shape)
    metrics.reference = reference[metrics.index].item()
    metrics.candidate = candidate[metrics.index].item()


# --- integers and booleans --------------------------------------------------------------------------------------------


def _measure_integers(reference: Tensor, candidate: Tensor) -> Metrics:
    metrics, worst, largest, start = Metrics(reference.numel()), _Worst(), 0, 0
    for ref, cand in chunks(reference, candidate):
        a, b = ref.numpy(), cand.numpy()
        unlike = a != b
        count = int(np.count_nonzero(unlike))
        if count:
            distance = _distance(a.astype(np.int64), b.astype(np.int64))
            at = int(distance.argmax())
            worst.offer(_NUMBER, float(distance[at]), start + at)
            largest = max(largest, int(distance[at]))
            metrics.differing += count
        start += ref.numel()
    metrics.outside, metrics.max_abs = metrics.differing, largest
    _pick(metrics, worst, reference, candidate)
    return metrics


def _distance(a: Array, b: Array) -> Array:
    """|a - b| of signed integers as unsigned ones: wrapping arithmetic is right where signed would overflow."""
    unsigned = _UNSIGNED[a.itemsize]
    return np.maximum(a, b).view(unsigned) - np.minimum(a, b).view(unsigned)


# --- floating point ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sums:
    """Running totals over the positions where both sides are finite."""

    reference: float = 0.0  # squares
    candidate: float = 0.0
    product: float = 0.0
    difference: float = 0.0
    max_ulp: int = 0
    max_abs: float = -1.0
    worst: _Worst = field(default_factory=_Worst)

    def add(self, reference: float, candidate: float, product: float, difference: float, largest: float) -> None:
        self.reference += reference
        self.candidate += candidate
        self.product += product
        self.difference += difference
        self.max_abs = max(self.max_abs, largest)


def _measure_floats(reference: Tensor, candidate: Tensor, atol: float, rtol: float) -> Metrics:
    metrics, sums, start = Metrics(reference.numel()), _Sums(), 0
    with np.errstate(over="ignore", invalid="ignore"):
        for ref, cand in chunks(reference, candidate):
            _add_chunk(metrics, sums, ref, cand, (atol, rtol), start)
            start += ref.numel()
    if sums.max_abs >= 0:
        metrics.max_abs, metrics.max_ulp = sums.max_abs, sums.max_ulp
        metrics.relative = _ratio(math.sqrt(sums.difference), math.sqrt(sums.reference))
        metrics.cosine = _ratio(sums.product, math.sqrt(sums.reference) * math.sqrt(sums.candidate))
    _pick(metrics, sums.worst, reference, candidate)
    return metrics


def _add_chunk(
    metrics: Metrics, sums: _Sums, ref: Tensor, cand: Tensor, bound: tuple[float, float], start: int
) -> None:
    bits = _signed_bits(ref), _signed_bits(cand)
    unlike = bits[0] != bits[1]
    count = int(np.count_nonzero(unlike))
    if count:
        metrics.differing += count
        sums.worst.offer(_BITS, 0.0, start + int(unlike.argmax()))
    a = ref.to(float64).numpy()
    b = cand.to(float64).numpy() if count else a
    if not _add_numbers(metrics, sums, (a, b), bits if count else None, bound, start):
        keep = _note_nonfinite(metrics, sums, a, b, start)
        a, b = np.where(keep, a, 0.0), np.where(keep, b, 0.0)
        bits = np.where(keep, bits[0], 0), np.where(keep, bits[1], 0)
        if keep.any():
            _add_numbers(metrics, sums, (a, b), bits if count else None, bound, start)


def _add_numbers(
    metrics: Metrics,
    sums: _Sums,
    numbers: tuple[Array, Array],
    bits: tuple[Array, Array] | None,
    bound: tuple[float, float],
    start: int,
) -> bool:
    """Add one chunk; False, and nothing added, if a number in it is not finite. `bits` None: both are the same."""
    a, b = numbers
    if bits is None:
        square = float(a @ a)
        if not math.isfinite(square) and not np.isfinite(a).all():
            return False
        sums.add(square, square, square, 0.0, 0.0)
        return True
    difference = np.subtract(b, a)
    np.abs(difference, out=difference)
    at = int(difference.argmax())  # the first NaN, if there is one
    largest = float(difference[at])
    if not math.isfinite(largest) and not (np.isfinite(a).all() and np.isfinite(b).all()):
        return False
    sums.add(float(a @ a), float(b @ b), float(a @ b), float(difference @ difference), largest)
    sums.max_ulp = max(sums.max_ulp, int(_distance(_ranks(bits[0]), _ranks(bits[1])).max()))
    if largest > 0:
        sums.worst.offer(_NUMBER, largest, start + at)
    if largest > bound[0]:  # else no element can be outside
        metrics.outside += int(np.count_nonzero(difference > bound[0] + bound[1] * np.abs(a)))
    return True


def _note_nonfinite(metrics: Metrics, sums: _Sums, a: Array, b: Array, start: int) -> Array:
    """Count NaN and infinity; returns where both sides are finite."""
    a_nan, b_nan = np.isnan(a), np.isnan(b)
    metrics.nan_reference += int(np.count_nonzero(a_nan))
    metrics.nan_candidate += int(np.count_nonzero(b_nan))
    keep = np.isfinite(a) & np.isfinite(b)
    disagree = ~(keep | (a_nan & b_nan) | (a == b))
    count = int(np.count_nonzero(disagree))
    if count:
        sums.worst.offer(_NONFINITE, 0.0, start + int(disagree.argmax()))
    metrics.nonfinite_disagree += count
    metrics.outside += count
    return keep


def _signed_bits(tensor: Tensor) -> Array:
    bits = as_integers(tensor).numpy()
    return bits.view(_SIGNED[bits.itemsize])


def _ranks(bits: Array) -> Array:
    """Bit patterns of floats -> ranks in which neighbouring floats are neighbours; both zeros have rank 0."""
    sign = bits >> (8 * bits.itemsize - 1)  # 0 or -1
    return (bits ^ (sign & np.iinfo(bits.dtype).max)) - sign


def _ratio(numerator: float, denominator: float) -> float | None:
    if not denominator:
        return None if numerator == 0 else math.inf
    ratio = numerator / denominator
    return ratio if math.isfinite(ratio) else None
