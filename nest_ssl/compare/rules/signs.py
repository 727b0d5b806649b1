"""Adam's update of an element whose moment is about zero: a sign, that is a discrete value, which rounding alone flips.

The first update of an element is its learning rate times the sign of its gradient, however small that is. Where the
sign is the other one, the update is two learning rates off: thousands of its floors. As for a token, the distance to
the other decision is held against what rounding does to that distance. Only what has the other sign in the candidate's
own moment is excused, and only up to the largest update of its tensor; every other element keeps its floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nest_ssl.compare.bits import same_bits
from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import Finding, Judgement, Note, Spot
from nest_ssl.compare.metrics import measure
from nest_ssl.compare.rules import Rule
from nest_ssl.compare.rules.noise_floor import LOOK, ROUNDING
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.step_files import StepFiles

SIGN = "sign"  # the rule that judges what is left without these elements
MOMENTS = ("exp_avg", "exp_avg_sq")  # as every kind of Adam keeps them
Sides = tuple[StepFiles, StepFiles]


class Signs:
    """Judges weights and updates again, over the steps of one comparison in their order.

    Args:
        rule: what judges the other elements.
        evidence: the noise floor of moments and updates.
    """

    def __init__(self, rule: Rule, evidence: Evidence) -> None:
        self.rule, self.evidence = rule, evidence
        self._reach: dict[tuple[int, str], Tensor] = {}  # how far apart turned signs may have brought each element

    def excuse(self, result: StepFindings, sides: Sides) -> None:
        """Judge again what is beyond its floor in the weights that a step left."""
        tally = result.tallies["weights"]
        beyond: dict[str, list[int]] = {}
        for place, one in enumerate(tally.findings):
            by_floor = one.metrics and one.judgement and one.judgement.rule == "noise floor" and not one.within
            if by_floor and one.address.kind in (Kind.PARAMETER, Kind.UPDATE):
                name = ".".join(part for part in (one.address.module, one.address.slot) if part)
                beyond.setdefault(name, []).append(place)
        if not beyond or not all(side.has(layout.OPTIMIZER) and side.has(layout.WEIGHTS) for side in sides):
            return
        states = [side.optimizer_state()["state"] for side in sides]
        before, after = [side.start_weights() or {} for side in sides], [side.weights() for side in sides]
        turned = 0
        for name, places in beyond.items():
            moments = [state.get(name, {}) for state in states]
            weights = [one[name] for one in after]
            kept = [moment.get(key) for moment in moments for key in MOMENTS]
            of_adam = all(isinstance(one, Tensor) and one.shape == weights[0].shape for one in kept)
            if not of_adam or not all(name in table for table in before):
                continue
            near, bound = self._near(result, name, [moment["exp_avg"] for moment in moments])
            if not near.any() and (result.rank, name) not in self._reach:
                continue
            updates = [new.double() - old[name].double() for new, old in zip(weights, before, strict=True)]
            loose = self._loose(result, name, near, updates)
            for place in places:
                one = tally.findings[place]
                update = one.address.kind == Kind.UPDATE
                values, free = (updates, loose) if update else (weights, self._brought(result, name, weights))
                tally.findings[place] = self._judged(one, values, free, bound)
            if any(judgement and judgement.rule == SIGN for judgement in (tally.findings[p].judgement for p in places)):
                turned += int(loose.sum())
        if turned:
            tally.notes.append(Note("signs", {"step": result.step, "count": turned}))

    def _near(self, result: StepFindings, name: str, moments: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Which elements of a moment have the other sign, or had once, and lie within its floor of zero."""
        floor = self._spread(result, of_entry(Kind.OPTIMIZER_STATE, name, "exp_avg", result.rank))
        turned = moments[0].sign() * moments[1].sign() < 0
        if (earlier := self._reach.get((result.rank, name))) is not None:
            turned |= earlier > 0
        near = turned & (moments[0].abs() <= ROUNDING * floor)
        return near, {"floor": floor, "margin": float(moments[0][near].abs().max()) if near.any() else 0.0}

    def _loose(self, result: StepFindings, name: str, near: Tensor, updates: Sequence[Tensor]) -> Tensor:
        """Which of these have an update that a sign can be: no larger than the largest of the tensor."""
        largest = float(updates[0].abs().max())
        most = largest + LOOK * self._spread(result, of_entry(Kind.UPDATE, name, rank=result.rank))
        loose = near & (updates[1].abs() <= most)
        earlier = self._reach.get((result.rank, name), torch.zeros_like(updates[0]))
        self._reach[result.rank, name] = earlier + 2 * largest * loose
        return loose

    def _brought(self, result: StepFindings, name: str, weights: Sequence[Tensor]) -> Tensor:
        """Which elements of a weight are no further apart than the signs of their updates have brought them by now."""
        reach = self._reach[result.rank, name]
        apart = (weights[1].double() - weights[0].double()).abs()
        return (reach > 0) & (
            apart <= reach + LOOK * self._spread(result, of_entry(Kind.PARAMETER, name, rank=result.rank))
        )

    def _spread(self, result: StepFindings, address: Address) -> float:
        floor = self.evidence.floor(result.step, address)
        return floor.max_abs_largest if floor else 0.0

    def _judged(self, one: Finding, values: Sequence[Tensor], free: Tensor, bound: dict[str, float]) -> Finding:
        """By the floor of its tensor, without those elements; as it was where that does not let it pass."""
        rest = torch.where(free, values[0], values[1])
        if same_bits(values[0], rest):
            return replace(one, judgement=Judgement(True, SIGN, bound, 0.0))
        metrics = measure(values[0], rest, 0.0, 0.0)
        metrics.eps = one.metrics.eps if one.metrics else metrics.eps
        found = self.rule.judge(Spot(one.rung, one.moment, one.address), metrics)
        return replace(one, judgement=Judgement(True, SIGN, bound, found.ratio)) if found.within else one
