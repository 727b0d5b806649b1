"""Both trainers in float64, tensor by tensor: a correct rewrite agrees to 1e-13, the smallest bug does not to 1e-9.

What is zero there, and what the optimizer divides by it, keeps the noise floor that it has in float32: relative to zero
no size has a meaning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import Finding, Judgement, Spot
from nest_ssl.compare.metrics import Metrics, is_scaled
from nest_ssl.compare.rules.noise_floor import LOOK, ROUNDING, in_a_step, is_noise, nearest_floor
from nest_ssl.compare.rules.same_function import AGREE, VANISHES
from nest_ssl.recording.address import Address, Kind

EPS = torch.finfo(torch.float32).eps
LAST = 2 * EPS  # how far apart, relative, what is float32 is by its last places
# Adam divides by the gradient's own size, so that elements whose gradient is zero move by noise in any precision.
_DIVIDED = (Kind.UPDATE, Kind.OPTIMIZER_STATE, Kind.PARAMETER)


@dataclass(frozen=True)
class Float64Rule:
    """Each tensor within `AGREE`, relative to itself.

    Args:
        evidence: whose floors say which tensors are noise.
        shown: by step and address, how far apart the training steps are in float64. A validation may be `LOOK` times as
            far apart as the same call of the steps up to it, and no further: neither other weights nor a batch of its
            own make a correct rewrite another function, unless what it begins with is further apart.
        silent: outputs that are of float32 even there, as features are. How far rounding takes these depends on the
            batch: they may be as many times further apart as their own floor in validations is than a step's, and as
            far as it where their audio is of another kind (telephone speech: a hundred times; silence, tones; speech
            that is a thousand times quieter: twice, and then rewrites come ten times further apart). Where it was not
            measured they may be as far apart as the steps' are, and the proof lacks it. Most of their rows may be as
            far apart as that floor's (see the noise floor). Never as the reference times one number (rounding has no
            direction). What comes behind them may be as many times further apart as they are. A last place or two of
            float32 they may be apart in any case: a rewrite that depends on shapes may show in a validation alone.
        single: the parts without weights that compute in float32 even there; a validation records no calls in these.
    """

    evidence: Evidence
    shown: Mapping[tuple[int, Address], float] = field(default_factory=dict)
    silent: Collection[Address] = ()
    single: Collection[str] = ()
    _grown: dict[int, float] = field(default_factory=dict)  # by validation: how many times further apart `silent` is
    _moved: dict[int, float] = field(default_factory=dict)  # by validation: how many floors, where the steps are not

    def bound(self, spot: Spot) -> tuple[float, float]:
        return 0.0, 0.0

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        floor = self.evidence.floor(spot.moment.step, spot.address)
        bound, size = AGREE, metrics.relative if metrics.relative is not None else float("inf")
        if spot.rung == "validation":
            bound = max(bound, self._in_evaluation(spot, metrics, size))
        if floor and spot.address.kind in _DIVIDED:
            bound = max(bound, floor.relative_largest)
        if floor and is_noise(floor) and (metrics.max_abs or 0.0) <= VANISHES * floor.max_abs_largest:
            size = 0.0
        within = size <= bound and not metrics.nonfinite_disagree
        return Judgement(within, "float64", {"relative": bound}, size / bound)

    def _in_evaluation(self, spot: Spot, metrics: Metrics, size: float) -> float:
        """How far apart a tensor of a validation may be."""
        before, step = self._in_training(spot), spot.moment.step
        near = nearest_floor(self.evidence, step, spot.address.rank)
        floor = self.evidence.floor(near, in_a_step(spot.address))
        once = floor.relative_largest if floor else 0.0
        if spot.address not in self.silent and spot.address.module not in self.single:
            return LOOK * max(before * self._grown.get(step, 1.0), once * self._moved.get(step, 0.0))
        measured = self.evidence.features.get(spot.address)
        further = max(1.0, self.evidence.widened(spot.address, near))
        most, last = LOOK * before * further, LAST * further
        if measured and before and further > ROUNDING:  # audio of another kind: the steps are no measure
            most = max(most, measured.relative_largest)
        row = self.evidence.row(spot.address) * max(1.0, before / once if once else 0.0)
        most, last = (0.0, LAST) if is_scaled(metrics, EPS) or metrics.row > LOOK * max(row, EPS) else (most, last)
        if before and size <= most:
            self._grown[step] = max(self._grown.get(step, 1.0), size / before)
        elif once and size <= last:  # the steps do not show how far this goes on: their floor does
            self._moved[step] = max(self._moved.get(step, 0.0), size / once)
        return max(most, last)

    def _in_training(self, spot: Spot) -> float:
        """How far apart the same call, or the loss, is at the steps up to this validation."""
        named = in_a_step(spot.address)
        return max(
            (size for (step, at), size in self.shown.items() if at == named and step <= spot.moment.step), default=0.0
        )

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"kind": "float64", "relative": AGREE}


def shown_by(findings: Iterable[Finding]) -> dict[tuple[int, Address], float]:
    """How far apart the outputs of calls and the losses of training steps are, by step and address.

    Not what is noise there, or known: that is as large as may be, and no measure of anything.
    """
    judged = [(one, one.judgement) for one in findings if one.judgement and one.judgement.rule == "float64"]
    return {
        (one.moment.step, one.address): one.metrics.relative
        for one, judgement in judged
        if one.rung != "validation" and one.address.kind in (Kind.OUTPUT, Kind.LOSS) and judgement.ratio
        and one.metrics and one.metrics.relative is not None
    }  # fmt: skip
