"""A cause that is no module's own: one factor, an opposite sign or nothing at all, over all tensors of a kind.

Clipping, a learning rate, accumulation, a loss that is scaled, an update that is never made: each looks like a fault of
the first parameter that differs. Seen in all of them together it is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import takewhile

from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.findings import Finding
from nest_ssl.recording.address import Kind

FEWEST = 3  # tensors that a pattern takes
MOST = 0.9  # of all tensors of the kind: more is all of them
STRAY = 1e-3  # how far from one factor a tensor may be, relative
SMALL = 1e-4  # a factor this near to 1 is rounding's doing as well
KINDS = (Kind.OUTPUT_GRADIENT, Kind.GRADIENT, Kind.APPLIED_GRADIENT, Kind.UPDATE)  # in the order of a step


class Shape(str, Enum):
    FACTOR = "factor"  # each is the reference's times one number
    SIGN = "sign"  # each has the opposite sign
    ZERO = "zero"  # each is zero, or the same as before


@dataclass(frozen=True, slots=True)
class Pattern:
    """What all tensors of a kind have in common that differ at a step.

    Args:
        step, rank, kind: of which.
        count: how many differ so.
        whole: whether that is all of the kind that differ on either side, and nearly all that there are.
        factor: by which the reference's are to be multiplied.
        below: where they are only some: the module that holds all of them; "" for the root.
        own: where they all have one name in their modules (``bias``).
    """

    step: int
    rank: int
    kind: Kind
    shape: Shape
    count: int
    whole: bool
    factor: float
    below: str = ""
    own: str = ""


def patterns_of(steps: Sequence[StepFindings]) -> list[Pattern]:
    """The patterns of the first step in which there is one, in the order of a step."""
    for step in steps:
        found = [pattern for kind in KINDS for pattern in [_pattern(step, kind)] if pattern]
        if found:
            return found
    return []


def _pattern(step: StepFindings, kind: Kind) -> Pattern | None:
    findings = [one for tally in step.tallies.values() for one in tally.findings if one.address.kind == kind]
    measured = [one for one in findings if one.metrics and one.metrics.factor is not None and one.metrics.norm]
    shapes = Counter(shape for one in measured for shape in [_shape_of(one)] if shape)
    if not shapes:
        return None
    shape, count = shapes.most_common(1)[0]
    if count < FEWEST or count < MOST * len(measured):
        return None
    alike = [one for one in measured if _shape_of(one) is shape]
    factors = sorted(one.metrics.factor for one in alike if one.metrics and one.metrics.factor is not None)
    factor = factors[len(factors) // 2]
    if shape is Shape.FACTOR and sum(abs(f - factor) <= STRAY * abs(factor) for f in factors) < MOST * len(factors):
        return None
    total = _compared(step, kind)
    modules = [one.address.module or "" for one in alike]
    names = {one.address.slot for one in alike}
    shared = takewhile(
        lambda parts: len(set(parts)) == 1, zip(*(module.split(".") for module in modules), strict=False)
    )
    prefix = ".".join(parts[0] for parts in shared)
    whole = count >= MOST * total
    return Pattern(
        step.step, step.rank, kind, shape, count, whole, factor,
        "" if whole else prefix, names.pop() if len(names) == 1 and not whole else "",
    )  # fmt: skip


def _compared(step: StepFindings, kind: Kind) -> int:
    """How many tensors of the kind were compared; of updates, those of trained parameters."""
    units = step.tallies["gradients"].compared
    return units["output gradients"] if kind is Kind.OUTPUT_GRADIENT else units["parameter gradients"]


def _shape_of(finding: Finding) -> Shape | None:
    """What a tensor alone looks like: the reference's times a number, and no other difference."""
    metrics = finding.metrics
    assert metrics is not None and metrics.factor is not None
    if metrics.factor == 0 and metrics.relative == 1:
        return Shape.ZERO
    straight = metrics.cosine is not None and abs(abs(metrics.cosine) - 1) <= STRAY**2
    if not straight or abs(metrics.factor - 1) <= SMALL:
        return None
    return Shape.SIGN if abs(metrics.factor + 1) <= STRAY else Shape.FACTOR
