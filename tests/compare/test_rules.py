"""The rules: each has a fault that it catches and a correct rewrite that it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nest_ssl.compare.evidence import Evidence, Floors
from nest_ssl.compare.findings import Difference, Judgement, Spot, Tally
from nest_ssl.compare.metrics import Metrics, is_scaled, measure
from nest_ssl.compare.rules.fixed import FixedTolerance
from nest_ssl.compare.rules.float64 import Float64Rule
from nest_ssl.compare.rules.noise_floor import Band, NoiseFloorRule, band, floors_of, growth_of, is_noise
from nest_ssl.compare.rules.same_function import By, Function, SameFunctionRule
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.calls import Call
from nest_ssl.recording.clock import Moment, Phase
from nest_ssl.recording.evidence import Margin, Place, Replay, Unit
from tests.compare.evidence import apart, entry, output, unit

M = output("m")
TOKENS = Address(Kind.OUTPUT, "tokens", 0)
SEAL = "0" * 64


def spot(address: Address = M, step: int = 0) -> Spot:
    return Spot("forward", Moment(step, Phase.FORWARD), address)


def evidence(relative: float = 1e-7, max_abs: float = 1e-7, **fields: Any) -> Evidence:
    """A floor for `M`, and a margin of 4e-7, of which rounding makes 5e-7, for the third token."""
    margin = Margin(place=Place.of(TOKENS), index=[2], margin=4e-7, floor=5e-7)
    floors = Floors({M: entry(M, relative, max_abs)}, {(TOKENS, (2,)): margin}, 4)
    return Evidence(floors={(0, 0): floors}, **fields)


def floor_says(reference: torch.Tensor, candidate: torch.Tensor, found: Evidence | None = None) -> Judgement:
    rule = NoiseFloorRule(found or evidence())
    return rule.judge(spot(), measure(reference, candidate, 0.0, 0.0))


# --- the noise floor


@pytest.mark.parametrize(
    ("ratio", "means"), [(0.0, Band.ROUNDING), (1.19, Band.ROUNDING), (1.2, Band.LOOK), (3.0, Band.LOOK),
                         (3.1, Band.BEYOND), (math.inf, Band.BEYOND)],
)  # fmt: skip
def test_bands(ratio: float, means: Band) -> None:
    assert band(ratio) is means


@pytest.mark.parametrize(("off", "within"), [(1e-7, True), (2.5e-7, True), (4e-7, False), (1e-3, False)])
def test_a_difference_is_held_against_what_rounding_does_to_its_own_tensor(off: float, within: bool) -> None:
    one = torch.ones(8, dtype=torch.float64)
    found = floor_says(one, one + off)
    assert found.within is within
    assert found.ratio == pytest.approx(off / 1e-7, rel=1e-3)


def test_one_element_does_not_hide_in_a_large_tensor() -> None:
    one = torch.ones(1_000_000, dtype=torch.float64)
    other = one.clone()
    other[7] += 5e-5
    assert not floor_says(one, other).within
    other[7] = 1 + 5e-7  # as far as one element of many may be
    assert floor_says(one, other).within


def test_a_tensor_whose_true_value_is_zero_is_known_by_its_floor() -> None:
    noise = torch.full((8,), 1e-9)
    found = evidence(relative=1.4, max_abs=2e-9)
    assert is_noise(found.floors[0, 0].entries[M])
    assert floor_says(noise, -4 * noise, found).within  # another order of summation
    assert not floor_says(noise, noise + 1e-6, found).within  # a gradient that ought to be zero and is not


def test_no_floor_is_below_one_unit_in_the_last_place() -> None:
    """Four repeats may by chance leave a tensor of eight elements as it is."""
    still, eps = entry(M, 0.0, 0.0), 2.0**-23
    assert floors_of(0.7 * eps, eps, still, math.sqrt(8), eps, 8) < 1
    assert floors_of(7 * eps, 7 * eps, still, math.sqrt(8), eps, 8) > 3
    assert floors_of(1e-9, 1e-9, still, 0.0, eps, 8) == math.inf
    assert floors_of(0.0, 0.0, still, 0.0, eps, 8) == 0.0


def test_without_a_floor_nothing_is_within_it() -> None:
    rule, metrics = NoiseFloorRule(evidence()), measure(torch.ones(2), torch.ones(2) + 1e-7, 0.0, 0.0)
    assert not rule.judge(spot(output("other")), metrics).within
    assert not rule.judge(spot(step=1), metrics).within


def test_nan_on_one_side_is_no_rounding() -> None:
    assert not floor_says(torch.ones(2), torch.tensor([1.0, math.nan])).within


def test_a_step_that_begins_further_apart_has_a_larger_floor() -> None:
    found, one = evidence(), torch.ones(8, dtype=torch.float64)
    found.growths[0, 0] = 10.0
    assert floor_says(one, one + 1e-6, found).within
    assert not floor_says(one, one + 1e-5, found).within


def test_a_floor_whose_repeats_began_earlier_has_that_in_it() -> None:
    found, one = evidence(), torch.ones(8, dtype=torch.float64)
    entries = found.floors[0, 0].entries
    found.floors[1, 0], found.growths[1, 0] = Floors(entries, {}, 4, since=0), 10.0
    metrics = measure(one, one + 1e-6, 0.0, 0.0)
    assert not NoiseFloorRule(found).judge(spot(step=1), metrics).within
    found.floors[1, 0] = Floors(entries, {}, 4, since=1)
    assert NoiseFloorRule(found).judge(spot(step=1), metrics).within


@pytest.mark.parametrize(("flipped", "within"), [([2], True), ([1], False), ([1, 2], False)])
def test_a_token_may_flip_where_rounding_moves_its_margin_as_far(flipped: list[int], within: bool) -> None:
    one = torch.zeros(4, dtype=torch.int64)
    other = one.clone()
    other[flipped] = 3
    judged = NoiseFloorRule(evidence()).judge_whole(spot(TOKENS), measure(one, other, 0.0, 0.0))
    assert (judged is not None and judged.within) is within


@pytest.mark.parametrize(("became", "within"), [(3, True), (5, True), (4, False)])
def test_a_token_that_becomes_a_third_value_is_no_flip(became: int, within: bool) -> None:
    """However near the runner-up is: codes 3 and 5 are as near as rounding moves them."""
    found, one = evidence(), torch.zeros(4, dtype=torch.int64)
    (place, margin), *_ = found.floors[0, 0].margins.items()
    found.floors[0, 0] = Floors({}, {place: margin.model_copy(update={"others": [3, 5]})}, 4)
    other = one.clone()
    other[2] = became
    judged = NoiseFloorRule(found).judge_whole(spot(TOKENS), measure(one, other, 0.0, 0.0))
    assert judged is not None and judged.within is within


def test_no_token_of_a_validation_is_excused_by_a_margin_of_training() -> None:
    one, other = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 3, 0])
    there = Spot("validation", Moment(0, Phase.VALIDATION), TOKENS)
    assert NoiseFloorRule(evidence()).judge_whole(there, measure(one, other, 0.0, 0.0)) is None


def test_no_other_rule_lets_whole_numbers_differ() -> None:
    metrics = measure(torch.tensor([1]), torch.tensor([2]), 1.0, 1.0)
    assert FixedTolerance(9.0, 9.0).judge_whole(spot(), metrics) is None
    assert Float64Rule(evidence()).judge_whole(spot(), metrics) is None


# --- both trainers in float64


@pytest.mark.parametrize(("off", "within"), [(1.4e-13, True), (2.2e-9, False)])
def test_in_float64_the_smallest_bug_stands_out(off: float, within: bool) -> None:
    one = torch.ones(8, dtype=torch.float64)
    assert Float64Rule(evidence()).judge(spot(), measure(one, one + off, 0.0, 0.0)).within is within


def test_in_float64_zero_has_an_absolute_term() -> None:
    noise = torch.full((8,), 1e-18, dtype=torch.float64)
    rule = Float64Rule(evidence(relative=1.4, max_abs=1e-9))
    assert rule.judge(spot(), measure(noise, 5 * noise, 0.0, 0.0)).within
    assert not rule.judge(spot(), measure(noise, noise + 1e-12, 0.0, 0.0)).within


# --- one replayed unit


def judged(one: Unit, in_float64: Unit | None = None, found: Evidence | None = None) -> tuple[Function, By | None]:
    found = found or Evidence()
    if in_float64:
        found.replay64 = Replay(reference=SEAL, precision="float64", units=[in_float64])
    judgement = SameFunctionRule(found).judge(one)
    return judgement.function, judgement.by


def other_bits(relative: float, **fields: Any) -> Unit:
    return unit("m", outcome="other bits", deviations=[apart(M, relative, **{"max_abs": relative, **fields})])


@pytest.mark.parametrize(
    ("dtype", "relative", "function"),
    [
        (torch.bfloat16, 3e-3, Function.SAME),  # one rounding more, as of x * sigmoid(x)
        (torch.bfloat16, 5e-2, Function.ANOTHER),
        (torch.float32, 3e-3, Function.ANOTHER),  # as of a cast to bf16 and back
    ],
)
def test_a_replayed_tensor_may_be_off_by_the_last_place_of_its_own_type(
    dtype: torch.dtype, relative: float, function: Function
) -> None:
    one = other_bits(relative, norm=8**0.5, eps=torch.finfo(dtype).eps)
    exact = unit("m", outcome="other bits", deviations=[apart(M, 1e-16, max_abs=1e-16)])
    assert judged(one, exact, evidence(1e-4, 1e-4))[0] is function


def test_the_same_bits_are_the_same_function() -> None:
    assert judged(unit("m")) == (Function.SAME, By.BITS)


@pytest.mark.parametrize(
    ("factor", "noise", "elements", "scaled"),
    [
        (1 + 4e-6, 1e-6, 4096, True),  # most of the difference, and further than constants are off
        (1 + 4e-6, 1e-4, 4096, False),  # little of it
        (1 + 2e-7, 0.0, 4096, False),  # one constant's last place
        (1 + 4e-6, 0.0, 64, False),  # few elements may all be rounded one way
    ],
)
def test_rounding_has_no_direction(factor: float, noise: float, elements: int, scaled: bool) -> None:
    """What is within the floor, and the reference times one number, is another function all the same."""
    one, off = torch.randn(2, elements, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metrics = measure(one.float(), (one * factor + off * noise).float(), 0.0, 0.0)
    assert is_scaled(metrics) is scaled
    within, places = evidence(relative=1e-5, max_abs=1e-4), {(0, M)} if is_scaled(metrics) else set()
    found = SameFunctionRule(within, scaled=places).judge(other_bits(4e-6))
    assert (found.function, found.by) == ((Function.ANOTHER, By.SCALE) if scaled else (Function.SAME, By.FLOOR))
    agreeing = Replay(reference=SEAL, precision="float64", units=[other_bits(1e-13)])
    within.replay64 = agreeing  # float64 has the last word
    assert SameFunctionRule(within, scaled=places).judge(other_bits(4e-6)).function is Function.SAME


@pytest.mark.parametrize(("off", "within"), [(0.5, True), (1.0, True), (30.0, False)])
def test_a_table_worked_out_before_the_steps_may_be_off_by_its_own_last_place(off: float, within: bool) -> None:
    one = torch.sin(torch.arange(4096.0))
    other = (one.double() * (1 + off * torch.finfo(torch.float32).eps)).float()
    place = Spot("initial_weights", Moment(-1, Phase.INITIAL_WEIGHTS), Address(Kind.BUFFER, "m", slot="table"))
    metrics = measure(one, other, 0.0, 0.0)
    assert NoiseFloorRule(evidence()).judge(place, metrics).within is within
    weight = place._replace(address=Address(Kind.PARAMETER, "m", slot="weight"))
    assert not NoiseFloorRule(evidence()).judge(weight, metrics).within  # drawn: the same bits or not


def test_what_was_not_replayed_is_no_same_function() -> None:
    assert judged(unit("m", outcome="not replayed", why="no such module")) == (Function.NOT_REPLAYED, None)


def test_an_error_and_another_shape_are_another_function() -> None:
    assert judged(unit("m", outcome="raised", why="KeyError: x")) == (Function.ANOTHER, By.ERROR)
    assert judged(other_bits(1e-9, shape=None)) == (Function.ANOTHER, By.SHAPE)
    assert judged(other_bits(1e-9, nonfinite_disagree=1)) == (Function.ANOTHER, By.SHAPE)


@pytest.mark.parametrize(
    ("in_float64", "function"), [(1.4e-13, Function.SAME), (2.2e-9, Function.ANOTHER), (None, Function.SAME)]
)
def test_float64_separates_a_rewrite_from_a_bug_that_float32_cannot(
    in_float64: float | None, function: Function
) -> None:
    there = unit("m") if in_float64 is None else other_bits(in_float64)
    assert judged(other_bits(6e-8), there, evidence()) == (function, By.FLOAT64)


def test_what_is_zero_in_float64_has_no_relative_size() -> None:
    assert judged(other_bits(1.4, norm=1e-9, max_abs=1e-9), other_bits(1.4, norm=1e-18, max_abs=1e-18)) == (
        Function.SAME,
        By.FLOAT64,
    )


@pytest.mark.parametrize(
    ("relative", "says"),
    [(6e-8, (Function.SAME, By.FLOOR)), (2.9e-7, (Function.SAME, By.FLOOR)), (1e-5, (Function.ANOTHER, By.FLOOR))],
)
def test_without_float64_the_floor_decides(relative: float, says: tuple[Function, By]) -> None:
    assert judged(other_bits(relative), None, evidence()) == says
    assert judged(other_bits(relative), unit("m", outcome="not replayed"), evidence()) == says


def test_a_fault_of_float32_alone_is_found_though_float64_agrees() -> None:
    assert judged(other_bits(1e-3), unit("m"), evidence()) == (Function.ANOTHER, By.FLOAT32)


class Recorded:
    """A float64 recording of one call of `m`."""

    steps = (0,)

    def __init__(self, output: torch.Tensor, **inputs: torch.Tensor) -> None:
        call = {"index": 0, "module": "m", "call": 0, "training": True, "args": [], "arg_names": [], "start": 0}
        self._call = Call(**call, kwargs=inputs, output=output)

    def step(self, *_: int) -> Recorded:
        return self

    def calls(self) -> list[Call]:
        return [self._call]


THIRD = torch.full((2,), 1 / 3, dtype=torch.float64)  # no number of float32
GIVEN: dict[str, tuple[tuple[torch.Tensor, dict[str, torch.Tensor]], Function]] = {
    "float32 alone": ((THIRD, {"x": torch.ones(2), "length": torch.ones(2, dtype=torch.int64)}), Function.SAME),
    "float64": ((THIRD, {"x": torch.ones(2, dtype=torch.float64)}), Function.ANOTHER),
    "both": ((THIRD, {"x": torch.ones(2, dtype=torch.float64), "scale": torch.ones(2)}), Function.ANOTHER),
    "no numbers": ((THIRD, {"length": torch.ones(2, dtype=torch.int64)}), Function.ANOTHER),
    "values of float32 made": ((torch.ones(2, dtype=torch.float64), {"x": THIRD}), Function.SAME),
}


@pytest.mark.parametrize("name", GIVEN)
def test_where_float64_is_no_better_than_float32_the_floor_decides(name: str) -> None:
    (output_of_m, inputs), says = GIVEN[name]
    both: Any = (Recorded(output_of_m, **inputs), None)
    for relative, function in ((6e-8, says), (1e-5, Function.ANOTHER)):
        assert judged(other_bits(relative), other_bits(relative), evidence(float64=both))[0] is function


def test_without_either_nothing_is_decided() -> None:
    assert judged(other_bits(6e-8)) == (Function.UNDECIDED, None)


@pytest.mark.parametrize(("off", "within"), [(2e-7, True), (1e-5, False)])
def test_a_validation_is_held_against_the_floor_of_the_same_call_in_training(off: float, within: bool) -> None:
    one = torch.ones(8, dtype=torch.float64)
    place = Spot("validation", Moment(2, Phase.VALIDATION), M)
    assert NoiseFloorRule(evidence()).judge(place, measure(one, one + off, 0.0, 0.0)).within is within
    elsewhere = Spot("validation", Moment(2, Phase.VALIDATION), output("other"))
    assert not NoiseFloorRule(evidence()).judge(elsewhere, measure(one, one + off, 0.0, 0.0)).within


# --- validations

VALIDATED = Phase.VALIDATION


def validated(found: Evidence, off: float, before: int) -> Judgement:
    one = torch.ones(8, dtype=torch.float64)
    return NoiseFloorRule(found).judge(
        Spot("validation", Moment(before, VALIDATED), M), measure(one, one + off, 0.0, 0.0)
    )


@pytest.mark.parametrize(("before", "growth"), [(0, 1.0), (1, 10.0), (2, 500.0), (9, 500.0)])
def test_a_validation_is_given_the_growth_of_its_own_moment(before: int, growth: float) -> None:
    """Not that of all steps: the first one runs with weights that are the same."""
    found = evidence()
    found.growths |= {(1, 0): 10.0, (2, 0): 500.0}
    assert validated(found, growth * 2.9e-7, before).within
    assert not validated(found, growth * 3.1e-7, before).within


def test_a_validation_is_held_against_the_nearest_step() -> None:
    found = evidence()
    found.floors[1, 0] = Floors({M: entry(M, 1e-3, 1e-3)}, {}, 4)
    assert validated(found, 2e-3, before=1).within and not validated(found, 2e-3, before=0).within
    found.floors[1, 0] = Floors({M: entry(M, 1e-3, 1e-3)}, {}, 4, since=0)  # which holds what its repeats were apart
    found.growths |= {(1, 0): 50.0, (2, 0): 100.0}
    assert validated(found, 2.9e-3, before=1).within and not validated(found, 3.1e-3, before=1).within
    assert validated(found, 5.9e-3, before=2).within and not validated(found, 6.1e-3, before=2).within


# --- how far the sides are apart when a step begins


def after(*sizes: tuple[float, float], kind: Kind = Kind.PARAMETER) -> Tally:
    """Weights that differ: of each its norm, and by how much relative to that."""
    tally = Tally("weights", 0)
    for number, (norm, relative) in enumerate(sizes):
        metrics = Metrics(8, 8, norm=norm, relative=relative)
        address = Address(kind, f"m{number}", None, "weight")
        tally.findings.append(spot(address).finding(Difference.VALUES, 0, 0, dtype="float32", metrics=metrics))
    return tally


def test_a_step_grows_by_the_ulps_that_the_weights_are_apart() -> None:
    ulp = 0.72 * 2.0**-23
    assert growth_of(Tally("weights", 0)) == 1.0
    assert growth_of(after((1.0, ulp))) == pytest.approx(2.0)
    assert growth_of(after((3.0, 9 * ulp), (4.0, 9 * ulp))) == pytest.approx(10.0)
    assert growth_of(after((1.0, 100 * ulp), (1e6, 0.0))) == pytest.approx(1.0, abs=1e-3)  # over all of them together
    assert growth_of(after((1.0, 1e-2), kind=Kind.UPDATE)) == 1.0  # of weights alone


# --- float64, where it cannot speak


def test_another_shape_in_float64_is_no_value_of_float32() -> None:
    """A shape has no size, and all of no sizes are small: that must not hand the unit to the noise floor."""
    found = evidence(float64=(object(), object()))  # not to be opened
    there = unit("m", outcome="other bits", deviations=[apart(M, 0.0, 0.0, 0.0, shape=None)])
    assert judged(other_bits(6e-8), there, found) == (Function.ANOTHER, By.FLOAT64)
    there = unit("m", outcome="other bits", deviations=[apart(M, 0.0, 0.0, nonfinite_disagree=1)])
    assert judged(other_bits(6e-8), there, found) == (Function.ANOTHER, By.FLOAT64)


def test_nothing_compared_in_float64_decides_nothing() -> None:
    assert judged(other_bits(6e-8), unit("m", compared=0), evidence()) == (Function.SAME, By.FLOOR)
    assert judged(other_bits(6e-8), unit("m", compared=0)) == (Function.UNDECIDED, None)
