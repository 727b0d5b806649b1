"""Within what rounding alone does to this very tensor: the reference's own step, repeated one ulp away.

A difference is counted in floors: its Frobenius norm over the largest that any repeat had. A tensor whose true value is
zero (a gradient in front of a softmax or a batch norm) is recognised by a floor that is as large as itself; another
order of summation moves such noise further than an ulp does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import Judgement, Spot, Tally
from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import FloorEntry

ROUNDING, LOOK = 1.2, 3.0  # floors
ULP = 0.72  # of a number's epsilon: the mean size of one unit in the last place, relative to the number
NOISE = 0.1  # a floor that is so large relative to its tensor: the tensor is noise
NOISE_AT_MOST = 10.0  # floors that noise may differ by
LARGEST = 8.0  # the largest element of a tensor, in root mean squares
SINGLE_AT_MOST = 10.0  # floors that one element may differ by, where the whole tensor hides it


class Band(str, Enum):
    """What a ratio to the floor means."""

    ROUNDING = "as rounding"
    LOOK = "look"
    BEYOND = "not rounding"


def band(ratio: float) -> Band:
    return Band.ROUNDING if ratio < ROUNDING else Band.LOOK if ratio <= LOOK else Band.BEYOND


def is_noise(floor: FloorEntry) -> bool:
    """Whether rounding alone makes the tensor: its true value is zero."""
    return floor.relative_largest >= NOISE


def floors_of(
    relative: float | None, max_abs: float, floor: FloorEntry, norm: float, eps: float, elements: int, growth: float = 1
) -> float:
    """A difference in floors, from its relative Frobenius norm and its largest element.

    No floor is below one unit in the last place of the tensor itself: repeats may by chance leave a small one as it is.

    Args:
        norm, eps, elements: of the tensor its Frobenius norm, the epsilon of its type, and its size.
        growth: by how much the floor is exceeded by what came before the step.
    """
    if max_abs == 0:
        return 0.0
    whole = max(floor.relative_largest * growth, ULP * eps)
    single = max(floor.max_abs_largest * growth, LARGEST * eps * norm / math.sqrt(max(1, elements)))
    ratios = [
        math.inf if size is None or not most else size / most for size, most in ((relative, whole), (max_abs, single))
    ]
    if is_noise(floor):  # relative to noise no size has a meaning
        return min(ratios) * LOOK / NOISE_AT_MOST
    return max(ratios[0], ratios[1] * LOOK / SINGLE_AT_MOST)


@dataclass(frozen=True)
class NoiseFloorRule:
    """Each tensor within `LOOK` floors of its own; what has no floor has to have the same bits."""

    evidence: Evidence

    def bound(self, spot: Spot) -> tuple[float, float]:
        return 0.0, 0.0

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        if spot.rung == "validation":
            return self._judge_validation(spot.address, metrics)
        floor = self.evidence.floor(spot.moment.step, spot.address)
        if floor is None or metrics.nonfinite_disagree:
            return Judgement(False, "noise floor", {})
        growth = self.evidence.growth(spot.moment.step, spot.address.rank)
        size = metrics.relative, float(metrics.max_abs or 0.0)
        ratio = floors_of(*size, floor, metrics.norm or 0.0, metrics.eps, metrics.elements, growth)
        bound = {"relative": floor.relative_largest * growth, "max_abs": floor.max_abs_largest * growth}
        return Judgement(ratio <= LOOK, "noise floor", bound, ratio)

    def _judge_validation(self, address: Address, metrics: Metrics) -> Judgement:
        """Judge a validation, which is not repeated, by the largest floor of the same call, or the loss, in training.

        Its batch is another one, so only the sizes relative to the whole can be compared.
        """
        named = Address(Kind.LOSS, slot="loss") if address.kind == Kind.METRIC else address
        found = [floors.entries.get(named) for floors in self.evidence.floors.values()]
        relative = max((floor.relative_largest for floor in found if floor), default=0.0)
        relative = max(relative, ULP * metrics.eps) * max(self.evidence.growths.values(), default=1.0)
        if not any(found) or metrics.nonfinite_disagree or metrics.relative is None:
            return Judgement(False, "noise floor", {})
        ratio = metrics.relative / relative
        return Judgement(ratio <= LOOK, "noise floor", {"relative": relative}, ratio)

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        """Of whole numbers: a token may become the runner-up where rounding alone moves their distance as far."""
        found = [self.evidence.margin(spot.moment.step, spot.address, place) for place in metrics.places]
        margins = [margin for margin in found if margin is not None]
        if not margins or len(margins) < metrics.differing:
            return None
        ratio = max(margin.margin / margin.floor if margin.floor else math.inf for margin in margins)
        return Judgement(ratio <= ROUNDING, "margin", {"floor": margins[0].floor, "margin": margins[0].margin}, ratio)

    def describe(self) -> dict[str, Any]:
        repeats = max((floors.repeats for floors in self.evidence.floors.values()), default=0)
        return {"kind": "noise floor", "rounding": ROUNDING, "look": LOOK, "repeats": repeats}


def excuse_flips(tallies: Sequence[Tally]) -> None:
    """What comes after a token that rounding alone flips has no floor to be held against: it is judged by replay."""
    found = [finding for tally in tallies for finding in tally.findings]
    flips = [one for one in found if one.within and one.judgement and one.judgement.rule == "margin"]
    first = min((flip.moment for flip in flips), default=None)
    for tally in tallies if first else ():
        tally.findings = [
            replace(one, judgement=replace(one.judgement, within=True, rule="behind a flip"))
            if first and one.moment > first and one.judgement and one.judgement.ratio is not None and not one.within
            else one
            for one in tally.findings
        ]


def growth_of(after: Tally) -> float:
    """By how much the floor of the next step is exceeded: by what the weights of the two sides are apart before it.

    The floor's own repeats begin with weights one ulp away; how many ulps the sides are apart is taken over all
    parameters together, relative to those that differ.
    """
    found = [one for one in after.findings if one.address.kind == Kind.PARAMETER and one.metrics and one.metrics.norm]
    norms = [(one.metrics.norm or 0.0, one.metrics.relative or 0.0) for one in found if one.metrics]
    whole = math.sqrt(sum(norm**2 for norm, _ in norms))
    apart = math.sqrt(sum((norm * relative) ** 2 for norm, relative in norms))
    dtype = getattr(torch, found[0].dtype or "", torch.float32) if found else torch.float32
    return 1.0 + (apart / whole / (ULP * torch.finfo(dtype).eps) if whole else 0.0)
