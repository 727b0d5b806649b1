"""Within what rounding alone does to this very tensor: the reference's own step, repeated one ulp away.

A difference is counted in floors: its Frobenius norm over the largest that any repeat had. A tensor whose true value is
zero (a gradient in front of a softmax or a batch norm) is recognised by a floor that is as large as itself; another
order of summation moves such noise further than an ulp does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import torch

from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import Finding, Judgement, Spot, Tally
from nest_ssl.compare.metrics import Metrics, is_scaled
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import FloorEntry, Place

ROUNDING, LOOK = 1.2, 3.0  # floors
ULP = 0.72  # of a number's epsilon: the mean size of one unit in the last place, relative to the number
NOISE = 0.1  # a floor that is so large relative to its tensor: the tensor is noise
NOISE_AT_MOST = 10.0  # floors that noise may differ by
LARGEST = 8.0  # the largest element of a tensor, in root mean squares
SINGLE_AT_MOST = 10.0  # floors that one element may differ by, where the whole tensor hides it
ENOUGH = 3  # repeats without a flip; the floor of fewer may be narrower than what rounding does
# Of what no repeat moves: its own last place alone.
_UNMOVED = FloorEntry(
    place=Place(kind=Kind.BUFFER.value), norm=0.0, relative_largest=0.0, relative_typical=0.0, max_abs_largest=0.0,
    max_abs_typical=0.0, held_out=0.0,
)  # fmt: skip
BEHIND_A_FLIP = "behind a flip"  # the rule that judges what comes after a token that rounding flips


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


def nearest_floor(evidence: Evidence, step: int, rank: int) -> int:
    """The step whose floor stands in for a validation's: the one behind it, or the last before it."""
    steps = [(one <= step, one if one <= step else -one) for one, of in evidence.floors if of == rank]
    return abs(max(steps, default=(False, 0))[1])


def in_a_step(address: Address) -> Address:
    """What of a training step stands beside this of a validation: the loss beside what that gave in all."""
    return Address(Kind.LOSS, slot="loss") if address.kind == Kind.METRIC else address


def is_table(rung: str, address: Address) -> bool:
    """Whether it is a buffer before the first step: worked out once, from settings, so that no repeat perturbs it."""
    return rung == "initial_weights" and address.kind == Kind.BUFFER


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
    _shown: dict[Address, float] = field(default_factory=dict)  # how far apart features are at the steps
    _grown: dict[int, float] = field(default_factory=dict)  # by validation: how many times further its features are

    def bound(self, spot: Spot) -> tuple[float, float]:
        return 0.0, 0.0

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        if spot.rung == "validation":
            return self._judge_validation(spot, metrics)
        floor = self.evidence.floor(spot.moment.step, spot.address)
        if floor is None and is_table(spot.rung, spot.address):
            floor = _UNMOVED
        if floor is None or metrics.nonfinite_disagree:
            return Judgement(False, "noise floor", {})
        growth = self.evidence.growth(spot.moment.step, spot.address.rank)
        size = metrics.relative, float(metrics.max_abs or 0.0)
        self._shown[spot.address] = max(self._shown.get(spot.address, 0.0), metrics.relative or 0.0)
        ratio = floors_of(*size, floor, metrics.norm or 0.0, metrics.eps, metrics.elements, growth)
        bound = {"relative": floor.relative_largest * growth, "max_abs": floor.max_abs_largest * growth}
        return Judgement(ratio <= LOOK, "noise floor", bound, ratio)

    def _judge_validation(self, spot: Spot, metrics: Metrics) -> Judgement:
        """Judge a validation, which is not repeated, by the floor of the same call, or of the loss, in training.

        It is that of the nearest step, the one behind it or the last before it, and exceeded by what the weights of the
        sides are apart when it runs. Its batch is another one, so only sizes relative to the whole can be compared.
        Features have no weights: how far apart they are depends on the audio, and their own floor says it. Where they
        have none they may be as far apart as the steps' are, and the proof lacks it. They are never another scale. Most
        of their rows are held against the same of the floor: where a few channels are rounding alone (telephone speech
        above 3.4 kHz), these make all of the whole's floor, and a fault that is in every row would hide in it.
        """
        address, step, evidence = spot.address, spot.moment.step, self.evidence
        nearest = nearest_floor(evidence, step, address.rank)
        floors = evidence.floors.get((nearest, address.rank))
        floor = floors.entries.get(in_a_step(address)) if floors else None
        if floors is None or floor is None or metrics.nonfinite_disagree or metrics.relative is None:
            return Judgement(False, "noise floor", {})
        apart = {
            one: growth for (one, rank), growth in evidence.growths.items() if rank == address.rank and one <= step
        }
        growth = apart[max(apart)] if apart else 1.0
        if floors.since is not None and floors.since < nearest:  # it holds what its own repeats were apart
            growth = max(1.0, growth / evidence.growths.get((nearest, address.rank), 1.0))
        features, once = address.module in evidence.unweighted, max(floor.relative_largest, ULP * metrics.eps)
        once = max(once, self._shown.get(address, 0.0)) if features else once
        relative = once * (1.0 if features else growth + self._grown.get(step, 1.0) - 1.0)
        if features and (measured := evidence.features.get(address)):
            apart_there = self._shown.get(address, 0.0) * evidence.widened(address, nearest)
            relative = max(measured.relative_largest, apart_there, ULP * metrics.eps)
        ratio = metrics.relative / relative if relative else math.inf
        if features:
            row = evidence.row(address) * once / (floor.relative_largest or once)
            ratio = max(ratio, metrics.row / max(row, ULP * metrics.eps))
        within = ratio <= LOOK and not (features and is_scaled(metrics))
        if features and within and once:
            self._grown[step] = max(self._grown.get(step, 1.0), metrics.relative / once)
        return Judgement(within, "noise floor", {"relative": relative}, ratio)

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        """Of whole numbers: a token may become the runner-up where rounding alone moves their distance as far.

        A third value is no flip, however near the runner-up is. What was measured is how far the tokens of the training
        batch are from the next ones, not those of a validation.
        """
        if spot.rung == "validation":
            return None
        found = [self.evidence.margin(spot.moment.step, spot.address, place) for place in metrics.places]
        flips = [(margin, one) for margin, one in zip(found, metrics.became, strict=True) if margin is not None]
        if not flips or len(flips) < metrics.differing:
            return None
        margins = [margin for margin, _ in flips]
        ratio = max(margin.margin / margin.floor if margin.floor else math.inf for margin in margins)
        if any(margin.others is not None and one not in margin.others for margin, one in flips):
            ratio = math.inf
        return Judgement(ratio <= ROUNDING, "margin", {"floor": margins[0].floor, "margin": margins[0].margin}, ratio)

    def describe(self) -> dict[str, Any]:
        repeats = min((floors.repeats for floors in self.evidence.floors.values()), default=0)
        return {"kind": "noise floor", "rounding": ROUNDING, "look": LOOK, "repeats": repeats}


def excuse_flips(tallies: Sequence[Tally], evidence: Evidence) -> None:
    """Judge again what comes after a token that rounding alone flips, by what the same flip did to that very tensor.

    Repeats of the reference in which that token flipped are the measure: what does not depend on the token did not move
    further there than elsewhere, and is given no more room here. Where no repeat had the same flip, what a flip does is
    not known, and nothing is excused. The token itself may have been handed on: then it is the same flip.
    """
    found = [finding for tally in tallies for finding in tally.findings]
    flips = [one for one in found if one.within and one.judgement and one.judgement.rule == "margin"]
    for tally in tallies if flips else ():
        for place, one in enumerate(tally.findings):
            before = [f for f in flips if f.moment < one.moment and f.address.rank == one.address.rank]
            if one.within or one.metrics is None or not before:
                continue
            if one.judgement is None:  # whole numbers
                same = [f for f in before if (f.shape, _flipped(f)) == (one.shape, _flipped(one)) and _flipped(one)]
                judgement = same[0].judgement if same else None
            elif one.judgement.ratio is None:
                continue  # it has no floor
            else:
                judgement = _judge_behind(one, before, evidence)
            tally.findings[place] = replace(one, judgement=judgement)


def _flipped(finding: Finding) -> tuple[object, ...]:
    metrics = finding.metrics
    return (*metrics.places, metrics.index, metrics.reference, metrics.candidate) if metrics and metrics.places else ()


def _judge_behind(finding: Finding, flips: Sequence[Finding], evidence: Evidence) -> Judgement:
    step, metrics = finding.moment.step, finding.metrics
    floors, floor = evidence.floors.get((step, finding.address.rank)), evidence.floor(step, finding.address)
    first = min(flip.moment.step for flip in flips)
    margins = [
        evidence.margin(f.moment.step, f.address, place) for f in flips if f.metrics for place in f.metrics.places
    ]
    repeated = all(margin is not None and margin.flips for margin in margins)
    began = floors is not None and (step == first or (floors.since is not None and floors.since <= first))
    measured = floor.relative_flipped if floor and began and repeated else 0.0
    size = metrics.relative if metrics and metrics.relative is not None else math.inf
    ratio = size / measured if measured else math.inf
    return Judgement(ratio <= LOOK, BEHIND_A_FLIP, {"relative": measured}, ratio)


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
