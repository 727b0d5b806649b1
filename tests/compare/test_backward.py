"""Rung 8: gradients in backward order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Birth, Difference
from tests.compare.builder import edit_tensors, first, judge, left, place_of, statuses

Make = Callable[..., Path]
GRADIENTS = "step_0/parameter_gradients.pt"


def born(comparison: Comparison) -> tuple[Birth, str | None]:
    assert comparison.cause is not None
    return comparison.cause.birth, comparison.cause.after


class _Scaled(torch.autograd.Function):
    """The same values forward, another gradient backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 1.01


def scale_gradient_of(name: str) -> Callable[[nn.Module], None]:
    def plant(model: nn.Module) -> None:
        module = model.get_submodule(name)
        original = module.forward
        module.forward = lambda x: original(_Scaled.apply(x))

    return plant


def test_a_gradient_born_between_two_modules(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(after_build=scale_gradient_of("encoder.layers.1.linear2")), atol=0.0)
    assert statuses(comparison)["loss"] != "diverged" or first(comparison)[1] == 0
    assert first(comparison) == ("gradients", 0, "encoder.layers.0.activation", 3, "output_grad")
    assert born(comparison) == (Birth.BETWEEN_BACKWARDS, "encoder.layers.1.linear2")


def test_a_parameter_gradient_born_in_its_module(reference: Path, make: Make) -> None:
    def change(step: int, model: nn.Module) -> None:
        model.encoder.layers[1].linear1.bias.grad *= 1.01

    comparison = judge(reference, make(on_gradients=change), atol=0.0)
    assert first(comparison) == ("gradients", 0, "encoder.layers.1.linear1", None, "bias")
    assert born(comparison) == (Birth.OWN_BACKWARD, None)


def test_a_containers_own_parameter_comes_after_what_is_inside(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(after_build=scale_gradient_of("encoder.layers.1.linear1")), atol=0.0)
    found = [place_of(finding) for finding in comparison.rung("gradients").findings]
    order = [(module, name) for _, step, module, _, name in found if step == 0]
    assert order[0] == ("encoder.layers.1.norm", "output_grad")
    assert order.index(("encoder.layers.0.norm", "output_grad")) < order.index(("encoder.layers.0", "scale"))


def test_a_second_gradient_is_not_explained_by_the_first(reference: Path, make: Make) -> None:
    def change(step: int, model: nn.Module) -> None:
        model.decoder.bias.grad *= 1.01
        model.encoder.pre_encode.weight.grad *= 1.01

    comparison = judge(reference, make(on_gradients=change), atol=0.0)
    assert first(comparison)[2] == "decoder"
    assert left(comparison) == {"GRADIENTS": ["encoder.pre_encode.weight"]}


def test_a_loss_scaled_in_backward_only(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(on_loss=lambda step, loss: _Scaled.apply(loss)), atol=0.0)
    assert first(comparison) == ("gradients", 0, "loss", 0, "output_grad")
    assert born(comparison) == (Birth.FIRST_GRADIENT, None)


@pytest.mark.parametrize("swapped", [False, True])
def test_no_gradient_on_one_side(reference: Path, copy: Path, swapped: bool) -> None:
    edit_tensors(copy, GRADIENTS, lambda gradients: gradients.update({"decoder.bias": None}))
    comparison = judge(*((copy, reference) if swapped else (reference, copy)), atol=10.0)
    assert (comparison.exit_code, first(comparison)) == (1, ("gradients", 0, "decoder", None, "bias"))
    assert comparison.first is not None
    assert comparison.first.difference == Difference.NONE


def test_no_gradient_on_both_sides_agrees(copy: Path) -> None:
    edit_tensors(copy, GRADIENTS, lambda gradients: gradients.update({"decoder.bias": None}))
    assert judge(copy, copy).verdict == "identical"


def test_no_gradient_at_all_compares_nothing(copy: Path) -> None:
    edit_tensors(copy, GRADIENTS, lambda gradients: gradients.update(dict.fromkeys(gradients)))
    comparison = judge(copy, copy)
    assert (comparison.verdict, comparison.exit_code) == ("inconclusive", 2)
    assert statuses(comparison)["gradients"] == "not compared"


def test_a_gradient_missing_on_one_side(reference: Path, copy: Path) -> None:
    edit_tensors(copy, GRADIENTS, lambda gradients: gradients.pop("decoder.bias"))
    comparison = judge(reference, copy)
    assert (statuses(comparison)["gradients"], comparison.exit_code) == ("missing", 1)


def test_an_output_gradient_on_one_side(reference: Path, copy: Path) -> None:
    def drop(value: dict[str, Any]) -> None:
        next(call for call in value["calls"] if call["module"] == "decoder")["output_grads"].clear()

    edit_tensors(copy, "step_0/layer_outputs.pkl", drop)
    comparison = judge(reference, copy)
    assert (comparison.exit_code, first(comparison)[2:]) == (1, ("decoder", 0, "output_grad"))


def test_a_parameter_trained_that_should_be_frozen(reference: Path, make: Make) -> None:
    def thaw(model: nn.Module) -> None:
        model.masking.mask_emb.requires_grad = True

    comparison = judge(reference, make(after_build=thaw))
    assert first(comparison) == ("structure", None, "masking", None, "mask_emb.requires_grad")
    assert comparison.rung("gradients").missing_reference > 0
