"""An update of Adam whose moment is about zero is a sign, and may flip; nothing else about it may be otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.evidence import Evidence, Floors
from nest_ssl.compare.findings import Finding
from nest_ssl.compare.rules.noise_floor import NoiseFloorRule
from nest_ssl.compare.rules.signs import SIGN, Signs
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.rungs.weights import compare_after_step
from nest_ssl.compare.values import Comparer
from nest_ssl.recording.address import Kind, of_entry
from nest_ssl.recording.evidence import FloorEntry, Place

RATE, SIZE, FLIPPED = 1e-3, 64, 5
FP32, BF16 = 1e-6, 1e-2  # of the largest gradient: how far rounding moves each of them
Step = tuple[dict[str, Tensor], Tensor, Tensor]  # state of the optimizer, weights before and after


def steps_of(
    gradients: Sequence[Tensor], change: Callable[[Tensor, int], Tensor] = lambda update, _: update
) -> list[Step]:
    """AdamW in float32; `change` is a fault of it."""
    weight = torch.nn.Parameter(torch.linspace(-0.1, 0.1, SIZE))
    optimizer = torch.optim.AdamW([weight], lr=RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    made = []
    for number, gradient in enumerate(gradients):
        before, weight.grad = weight.detach().clone(), gradient
        optimizer.step()
        with torch.no_grad():
            weight.copy_(before + change(weight - before, number))
        made.append(({n: v.clone() for n, v in optimizer.state[weight].items()}, before, weight.detach().clone()))
    return made


def files(step: Step, number: int) -> Any:
    state, before, after = step
    found = {"weights": lambda: {"w": after}, "start_weights": lambda: {"w": before}, "has": lambda _: True,
             "optimizer_state": lambda: {"state": {"w": state}, "param_groups": []}}  # fmt: skip
    return SimpleNamespace(**found, number=number)


def floors(spread: float, step: int) -> Floors:
    """Of a first update nothing is left but its rounding; behind it gradients move what it makes of the moments."""
    moved = RATE * spread * step
    sizes = {
        of_entry(Kind.OPTIMIZER_STATE, "w", "exp_avg"): (1.0, 0.1 * spread),
        of_entry(Kind.OPTIMIZER_STATE, "w", "exp_avg_sq"): (1.0, spread),
        of_entry(Kind.PARAMETER, "w"): (1e-7 + 8 * moved, 1e-8 + moved),
        of_entry(Kind.UPDATE, "w"): (2e-5 + spread * step, 1e-8 + moved),
    }
    entries = {}
    for address, (relative, most) in sizes.items():
        relatives = {"relative_largest": relative, "relative_typical": relative, "held_out": 0.0}
        entries[address] = FloorEntry(
            place=Place.of(address), norm=1.0, **relatives, max_abs_largest=most, max_abs_typical=most
        )
    return Floors(entries, {}, 8, 0)


def beyond(spread: float, reference: Sequence[Step], candidate: Sequence[Step]) -> tuple[list[Finding], list[Finding]]:
    """What of weights and updates no floor lets pass, and what passes as a sign."""
    evidence = Evidence(floors={(number, 0): floors(spread, number) for number in range(len(reference))})
    rule = NoiseFloorRule(evidence)
    signs, found = Signs(rule, evidence), []
    for number, sides in enumerate(zip(reference, candidate, strict=True)):
        sheet = Sheet("weights", Comparer(rule), number)
        one, other = (files(side, number) for side in sides)
        compare_after_step(sheet, one, other, {"w": Kind.PARAMETER})
        tallies: Any = {"weights": sheet.tally}
        signs.excuse(StepFindings(number, 0, tallies), (one, other))
        found += sheet.tally.findings
    kept = [one for one in found if one.address.kind in (Kind.PARAMETER, Kind.UPDATE)]
    as_signs = [one for one in kept if one.judgement and one.judgement.rule == SIGN]
    return [one for one in kept if not one.within], as_signs


def gradient(at: float = 0.0) -> Tensor:
    """Of sizes from 0.1 to 1, but for one element."""
    made = torch.linspace(0.1, 1.0, SIZE) * torch.tensor([1.0, -1.0]).repeat(SIZE // 2)
    made[FLIPPED] = at
    return made


@pytest.mark.parametrize("spread", [FP32, BF16])
def test_the_sign_of_a_gradient_about_zero_may_flip(spread: float) -> None:
    """Two steps: where the weight was brought by the first it still is after the second."""
    small, normal = 0.3 * spread, gradient(0.5)
    reference, candidate = (steps_of([gradient(at), normal]) for at in (small, -0.5 * small))
    failed, signs = beyond(spread, reference, candidate)
    assert failed == []
    assert [(one.address.kind, one.moment.step) for one in signs] == [
        (Kind.PARAMETER, 0), (Kind.UPDATE, 0), (Kind.PARAMETER, 1),
    ]  # fmt: skip
    assert signs[0].judgement and signs[0].judgement.bound["margin"] == pytest.approx(0.1 * small)
    assert signs[1].metrics and (signs[1].metrics.max_abs or 0.0) > 1.9 * RATE  # what differs is shown as it is


FAULTS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "the sign everywhere": lambda update, _: -update,
    "the sign of that one": lambda update, _: torch.where(torch.arange(SIZE) == FLIPPED, -update, update),
    "the learning rate x 1.001": lambda update, _: update * 1.001,
    "that one is twice as large": lambda update, _: torch.where(torch.arange(SIZE) == FLIPPED, 2 * update, update),
    "that one goes on by itself": lambda update, step: update + 3e-3 * step * (torch.arange(SIZE) == FLIPPED),
    "eps": lambda update, _: update * torch.where(torch.arange(SIZE) == FLIPPED, 0.9, 1 - 1e-3),
}


@pytest.mark.parametrize("spread", [FP32, BF16])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("flips", [False, True])
def test_a_fault_of_the_optimizer_is_one_beside_a_flip_too(spread: float, fault: str, flips: bool) -> None:
    small, normal = 0.3 * spread, gradient(0.5)
    reference = steps_of([gradient(small), normal])
    candidate = steps_of([gradient(-0.5 * small if flips else small), normal], FAULTS[fault])
    failed, _ = beyond(spread, reference, candidate)
    if flips and fault == "the sign of that one":  # and its fault have one effect: the first step cannot tell
        failed = [one for one in failed if one.moment.step == 1]
    assert {one.address.kind for one in failed} >= {Kind.UPDATE} or fault == "that one goes on by itself"
    assert failed, fault


@pytest.mark.parametrize("spread", [FP32, BF16])
def test_a_sign_that_rounding_does_not_reach_is_no_flip(spread: float) -> None:
    reference, candidate = (steps_of([gradient(at)]) for at in (2 * spread, -2 * spread))
    failed, signs = beyond(spread, reference, candidate)
    assert {one.address.kind for one in failed} == {Kind.PARAMETER, Kind.UPDATE} and signs == []


def test_without_the_state_of_an_adam_nothing_is_excused() -> None:
    reference, candidate = (steps_of([gradient(at)]) for at in (0.3 * FP32, -0.3 * FP32))
    for side in (reference, candidate):
        del side[0][0]["exp_avg_sq"]
    failed, signs = beyond(FP32, reference, candidate)
    assert failed and signs == []
