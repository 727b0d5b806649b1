"""Every faulty module is named and no other, forward and backward apart; a correct rewrite is the same function."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nest_ssl.recording.evidence import Replay
from nest_ssl.recording.reader import Recording
from tests.replay import planted
from tests.replay.conftest import Plant, blamed, replayed

L = planted.LAYER
BOTH = {"forward", "backward"}
FAULTS = {
    planted.norm_eps: {f"{L}.norm_conv": BOTH},
    planted.norm_eps_a_tenth_more: {f"{L}.norm_conv": BOTH},
    planted.residual_factor: {L: BOTH},
    planted.attention_scale: {f"{L}.self_attn": BOTH},
    planted.one_gradient: {f"{L}.feed_forward1.linear1": {"backward"}},
    planted.detached_branch: {f"{L}.conv": {"backward"}},
    planted.stft_padding: {"preprocessor.featurizer": {"forward"}},
    planted.batch_norm_momentum: {f"{L}.conv.batch_norm": {"forward"}},
    planted.one_number_more: {"mask_processor": {"draws"}},
}
REWRITES = {
    planted.swish_by_hand: f"{L}.conv.activation",
    planted.split_product: f"{L}.feed_forward1.linear2",
    planted.norm_by_hand: f"{L}.norm_out",
    planted.softmax_in_another_order: f"{L}.self_attn",
}
AGREES = 1e-10  # relative, in float64


def named(value: Any) -> str | None:
    return getattr(value, "__name__", None)


def outcomes(found: Replay) -> set[str]:
    return {unit.outcome for unit in found.units}


@pytest.mark.parametrize("plant", [planted.twin, planted.norm_through_another_door], ids=named)
def test_the_same_kernels_come_out_with_the_same_bits(reference: Recording, plant: Plant) -> None:
    found = replayed(reference, plant)
    assert outcomes(found) == {"same bits"} and blamed(found) == {}
    calls = [call for step in (0, 1) for call in reference.step(step).calls()]
    forward = [(unit.module, unit.call) for unit in found.units if unit.phase == "forward"]
    assert forward == [(call.module, call.call) for call in calls]
    gradients = [name for name, gradient in reference.step(0).gradients().items() if gradient is not None]
    assert sum(unit.compared for unit in found.units if unit.phase == "backward") > 2 * len(gradients)


@pytest.mark.parametrize(("plant", "expected"), FAULTS.items(), ids=named)
def test_a_fault_is_named(reference: Recording, plant: Plant, expected: dict[str, set[str]]) -> None:
    assert blamed(replayed(reference, plant)) == expected


def test_several_faults_at_once_are_all_named(reference: Recording) -> None:
    plants = (planted.stft_padding, planted.attention_scale, planted.one_gradient, planted.residual_factor)
    expected: dict[str, set[str]] = {}
    for plant in plants:
        expected |= FAULTS[plant]
    assert blamed(replayed(reference, *plants)) == expected


def test_what_is_random_draws_the_references_numbers(random_reference: Recording) -> None:
    found = replayed(random_reference)
    assert outcomes(found) == {"same bits"}
    assert {unit.module for unit in found.units if unit.phase == "draws"} > {"mask_processor", f"{L}.dropout"}
    missing = blamed(replayed(random_reference, planted.dropout_missing))
    assert missing == {f"{L}.feed_forward1.dropout": {"draws", *BOTH}}


@pytest.mark.parametrize(("plant", "module"), REWRITES.items(), ids=named)
def test_a_correct_rewrite_is_named_in_float32_and_the_same_function_in_float64(
    reference: Recording, double_reference: Recording, plant: Plant, module: str
) -> None:
    assert blamed(replayed(reference, plant)).keys() == {module}
    assert largest(replayed(double_reference, plant)) < AGREES


@pytest.fixture(scope="module")
def unchanged(double_reference: Recording) -> Replay:
    return replayed(double_reference)


@pytest.mark.parametrize(
    "plant",
    [planted.norm_eps, planted.norm_eps_a_tenth_more, planted.residual_factor, planted.attention_scale],
    ids=named,
)
def test_a_small_fault_is_another_function_in_float64(
    double_reference: Recording, unchanged: Replay, plant: Plant
) -> None:
    assert largest(unchanged) == 0.0
    found = replayed(double_reference, plant)
    assert blamed(found) == FAULTS[plant] and largest(found) > 1e-9


def test_a_module_that_is_no_longer_called_is_not_judged(reference: Recording, double_reference: Recording) -> None:
    found = replayed(reference, planted.fused_attention)
    assert blamed(found).keys() <= {f"{L}.self_attn"}
    skipped = {(unit.module, unit.phase) for unit in found.units if unit.outcome == "not replayed"}
    assert skipped == {(f"{L}.self_attn.dropout", "forward"), (f"{L}.self_attn.dropout", "backward")}
    assert largest(replayed(double_reference, planted.fused_attention)) < AGREES


def largest(found: Replay) -> float:
    """The largest deviation of a tensor that is not zero but for rounding; infinite where one is no number at all."""
    assert found.precision == "float64" and "raised" not in outcomes(found)
    deviations = [deviation for unit in found.units for deviation in unit.deviations]
    if any(one.shape is None or one.nonfinite_disagree for one in deviations):
        return math.inf
    return max((one.relative for one in deviations if one.norm > 1e-9), default=0.0)


def test_a_candidate_that_crashes_does_not_agree(double_reference: Recording) -> None:
    def crash(model: Any) -> None:
        planted.patch_forward(model.get_submodule(f"{L}.norm_out"), lambda *_: 1 / 0)

    with pytest.raises(AssertionError):
        largest(replayed(double_reference, crash))
