"""Tables of values: initial weights, batch, loss, weights and optimizer after the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare.comparison import Explanation
from nest_ssl.compare.findings import Birth, Difference
from nest_ssl.recording.reader import Recording
from nest_ssl.report.write import report_text
from tests.compare.builder import edit_tensors, first, judge, left, noted, remove, statuses

Make = Callable[..., Path]


# --- initial weights --------------------------------------------------------------------------------------------------


def test_one_initial_weight(reference: Path, make: Make) -> None:
    def nudge(model: nn.Module) -> None:
        model.encoder.layers[1].linear1.weight.data[2, 3] += 0.5

    comparison = judge(reference, make(after_build=nudge))
    assert comparison.exit_code == 1
    assert first(comparison) == ("initial_weights", None, "encoder.layers.1.linear1", None, "weight")
    assert comparison.first is not None
    assert comparison.first.index == (2, 3)
    assert comparison.unexplained == []


def test_an_initial_buffer_counts_too(reference: Path, make: Make) -> None:
    def nudge(model: nn.Module) -> None:
        model.encoder.layers[0].batch_norm.running_var += 1

    assert first(judge(reference, make(after_build=nudge)))[2:] == ("encoder.layers.0.batch_norm", None, "running_var")


def test_an_initial_weight_of_another_dtype(reference: Path, copy: Path) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        weights["decoder.bias"] = weights["decoder.bias"].double()

    edit_tensors(copy, "initial_weights/parameter_weights.pt", change)
    comparison = judge(reference, copy)
    assert first(comparison) == ("initial_weights", None, "decoder", None, "bias")
    assert comparison.first is not None
    assert comparison.first.difference == Difference.DTYPE


def test_a_second_initial_difference_is_not_explained_by_the_first(reference: Path, make: Make) -> None:
    def nudge(model: nn.Module) -> None:
        model.encoder.pre_encode.weight.data[0, 0] += 1
        model.decoder.weight.data[0, 0] += 1

    comparison = judge(reference, make(after_build=nudge))
    assert left(comparison) == {"INITIAL_WEIGHTS": ["decoder.weight"]}


# --- batch ------------------------------------------------------------------------------------------------------------


def test_whole_numbers_come_first(reference: Path, make: Make) -> None:
    def change(step: int, batch: dict[str, Tensor]) -> None:
        batch["audio"] += 1
        batch["audio_len"] += 1

    comparison = judge(reference, make(on_batch=change))
    assert first(comparison) == ("batch", 0, None, None, "audio_len")
    assert left(comparison) == {"OTHER_FIELDS": ["audio"]}


def test_lengths_have_no_tolerance(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/batch.pt", lambda batch: batch["audio_len"].add_(1))
    assert judge(reference, copy, atol=10.0).exit_code == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_a_field_on_one_side(reference: Path, copy: Path, swapped: bool) -> None:
    edit_tensors(copy, "step_1/batch.pt", lambda batch: batch.pop("audio_len"))
    sides = (copy, reference) if swapped else (reference, copy)
    comparison = judge(*sides)
    assert statuses(comparison)["batch"] == "missing"
    assert first(comparison) == ("batch", 1, None, None, "audio_len")


def test_a_batch_without_tensors_compares_nothing(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/batch.pt", lambda batch: batch.update(dict.fromkeys(batch)))
    comparison = judge(copy, copy)
    assert (comparison.verdict, statuses(comparison)["batch"]) == ("inconclusive", "not compared")


# --- loss -------------------------------------------------------------------------------------------------------------


def test_a_loss_of_another_kind(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(on_loss=lambda step, loss: loss * 1.001))
    assert first(comparison) == ("loss", 0, None, None, "loss")
    assert statuses(comparison)["forward"] == "equivalent"  # at step 1, after weights that differ a little


def test_the_losses_of_both_sides_are_kept(reference: Path, make: Make) -> None:
    losses = judge(reference, make(on_loss=lambda step, loss: loss * 2 if step else loss)).losses
    assert [loss.step for loss in losses] == [0, 1]
    assert losses[0].reference == losses[0].candidate
    assert losses[1].reference is not None and losses[1].candidate is not None
    assert losses[1].candidate > losses[1].reference


def test_what_an_explainer_says_is_kept_and_may_weaken_the_verdict(reference: Path) -> None:
    def explain(one: Recording, other: Recording, step: int) -> Explanation | None:
        return Explanation("own", step, "Nothing.", {"batch": "2 clips"}, weakens=True) if step else None

    comparison = judge(reference, reference, explainers=[explain])
    assert [(e.name, e.step, e.weakens) for e in comparison.explanations] == [("own", 1, True)]
    assert comparison.facts.batch == "2 clips"


def test_a_nan_loss_on_both_sides_is_the_same_and_said(copy: Path) -> None:
    edit_tensors(copy, "step_0/loss.pt", lambda loss: loss.update(loss=torch.tensor(math.nan)))
    comparison = judge(copy, copy)
    assert comparison.verdict == "identical"  # a NaN of the same bits on both sides
    assert noted(comparison, "loss_not_finite") == [{"step": 0}]


def test_nan_on_one_side_is_never_within(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/loss.pt", lambda loss: loss.update(loss=torch.tensor(math.nan)))
    comparison = judge(reference, copy, atol=1e30)
    assert (comparison.exit_code, first(comparison)[0]) == (1, "loss")


# --- after the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [("lr", 0.02), ("weight_decay", 0.2), ("eps", 1e-6), ("betas", (0.9, 0.9))])
def test_an_optimizer_setting(reference: Path, make: Make, key: str, value: Any) -> None:
    optimizer = {"lr": 0.01, "weight_decay": 0.1, key: value}
    comparison = judge(reference, make(optimizer=optimizer))
    tensor = f"param_groups.0.{key}" + (".1" if key == "betas" else "")
    assert first(comparison) == ("optimizer_input", 0, None, None, tensor)


def test_one_weight_after_the_step(reference: Path, make: Make) -> None:
    def change(step: int, model: nn.Module) -> None:
        if step == 1:
            model.decoder.bias.data[0] += 1

    comparison = judge(reference, make(after_step=change))
    assert first(comparison) == ("weights", 1, "decoder", None, "bias")


def test_gradients_clipped_before_the_step(reference: Path, make: Make) -> None:
    def clip(step: int, model: nn.Module) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)

    comparison = judge(reference, make(before_step=clip), atol=1e-9)
    assert first(comparison) == ("optimizer_input", 0, None, None, "applied_grad.factor")
    assert comparison.cause is not None and comparison.cause.birth == Birth.CLIPPING


def test_batch_norm_momentum_shows_in_its_buffers(reference: Path, make: Make) -> None:
    def change(model: nn.Module) -> None:
        model.encoder.layers[1].batch_norm.momentum = 0.2

    comparison = judge(reference, make(after_build=change))
    assert first(comparison) == ("weights", 0, "encoder.layers.1.batch_norm", None, "running_mean")


def test_an_optimizer_state_on_one_side(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/optimizer_state.pt", lambda state: state["state"].pop("decoder.bias"))
    comparison = judge(reference, copy)
    assert statuses(comparison)["weights"] == "missing"
    assert first(comparison) == ("weights", 0, "decoder", None, "bias")


def test_the_order_of_a_groups_parameters_does_not_matter(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/optimizer_state.pt", lambda state: state["param_groups"][0]["params"].reverse())
    assert judge(reference, copy).verdict == "identical"


def test_which_parameters_a_group_holds_matters(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/optimizer_state.pt", lambda s: s["param_groups"][0]["params"].remove("decoder.bias"))
    assert first(judge(reference, copy))[-1] == "param_groups.0.params.decoder.bias"


def test_a_member_of_a_group_whose_parameter_is_missing_follows_from_that(reference: Path, make: Make) -> None:
    """Not by itself unexplained, and the report shows what is missing where; left out alone it is the headline."""

    def without_bias(model: nn.Module) -> None:
        model.decoder.bias = None

    lacking = judge(reference, make(after_build=without_bias))
    assert first(lacking) == ("structure", None, "decoder", None, "bias") and left(lacking) == {}
    members = [one for one in lacking.rung("optimizer_input").findings if "params" in one.address.path]
    assert {(one.address.own_name, one.difference) for one in members} == {
        ("0.params.decoder.bias", Difference.MISSING_CANDIDATE)
    }
    assert "| into the optimizer | missing |" in report_text(lacking)


def test_a_step_without_an_optimizer_state_is_inconclusive(reference: Path, copy: Path) -> None:
    remove(copy, "step_0/optimizer_state.pt")
    comparison = judge(reference, copy)
    assert (comparison.verdict, comparison.exit_code) == ("inconclusive", 2)
    assert statuses(comparison)["weights"] == "not compared"


def test_another_implementation_of_the_optimizer_is_no_difference(reference: Path, copy: Path) -> None:
    """Fused or foreach: what it makes of the weights decides."""
    edit_tensors(copy, "step_0/optimizer_state.pt", lambda state: state["param_groups"][0].update(fused=True))
    comparison = judge(reference, copy)
    assert comparison.verdict == "identical"
    assert noted(comparison, "implementation") == [{"reference": "none of these", "candidate": "fused"}]
    edit_tensors(copy, "step_0/optimizer_state.pt", lambda state: state["param_groups"][0].update(amsgrad=True))
    assert judge(reference, copy).verdict == "diverged"
