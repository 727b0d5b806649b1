"""One cause over all tensors: a factor, a sign, nothing at all. A fault of one module makes no such pattern."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare.patterns import Pattern, Shape
from nest_ssl.recording.address import Kind
from tests.compare.builder import Plan, judge, record
from tests.compare.test_updates import Planted, half_of_the_parameters, negated, never, one_is_put_back

ONE = (0,)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("patterns") / "nemo", Plan(steps=ONE))


def patterns(reference: Path, tmp_path: Path, **plan: object) -> list[Pattern]:
    made = record(tmp_path / "nest", Plan("nest", "0.1.0", steps=ONE, **plan))  # type: ignore[arg-type]
    return judge(reference, made, atol=0.0, rtol=0.0).proof.patterns


def scaled(step: int, model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.25)


def zeros(step: int, model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def test_gradients_by_one_factor(reference: Path, tmp_path: Path) -> None:
    found = patterns(reference, tmp_path, on_gradients=scaled)[0]
    assert (found.kind, found.shape, found.whole) == (Kind.GRADIENT, Shape.FACTOR, True)
    assert found.factor == pytest.approx(0.25)


def test_gradients_that_are_zero(reference: Path, tmp_path: Path) -> None:
    assert patterns(reference, tmp_path, on_gradients=zeros)[0].shape is Shape.ZERO


def test_a_loss_that_is_scaled_shows_in_the_gradients_at_outputs(reference: Path, tmp_path: Path) -> None:
    def halved(step: int, loss: Tensor) -> Tensor:
        return loss * 0.5

    found = patterns(reference, tmp_path, on_loss=halved)[0]
    assert (found.kind, found.shape, found.factor) == (Kind.OUTPUT_GRADIENT, Shape.FACTOR, pytest.approx(0.5))


@pytest.mark.parametrize(
    ("change", "shape", "whole", "below"),
    [
        (negated, Shape.SIGN, True, ""),
        (never, Shape.ZERO, True, ""),
        (half_of_the_parameters, Shape.ZERO, False, "encoder.layers"),
    ],
)
def test_updates(
    reference: Path,
    tmp_path: Path,
    change: Callable[[str, Tensor, Tensor], Tensor],
    shape: Shape,
    whole: bool,
    below: str,
) -> None:
    planted = Planted(change)
    hooks = {"before_step": planted.before_step, "after_step": planted.after_step}
    (found,) = patterns(reference, tmp_path, **hooks)
    assert (found.kind, found.shape, found.whole, found.below) == (Kind.UPDATE, shape, whole, below)


def test_another_learning_rate(reference: Path, tmp_path: Path) -> None:
    (found,) = patterns(reference, tmp_path, optimizer={"lr": 0.02, "weight_decay": 0.1})
    assert (found.kind, found.shape, found.whole) == (Kind.UPDATE, Shape.FACTOR, True)
    assert found.factor == pytest.approx(2.0, rel=1e-3)


def test_a_fault_of_one_module_is_no_pattern(reference: Path, tmp_path: Path) -> None:
    def eps(model: nn.Module) -> None:
        model.encoder.layers[1].norm.eps = 2e-3

    assert patterns(reference, tmp_path, after_build=eps) == []


def test_one_weight_that_is_put_back_is_no_pattern(reference: Path, tmp_path: Path) -> None:
    planted = Planted(one_is_put_back)
    assert patterns(reference, tmp_path, before_step=planted.before_step, after_step=planted.after_step) == []


def test_rounding_is_no_pattern(reference: Path, tmp_path: Path) -> None:
    def rewrite(model: nn.Module) -> None:
        layer = model.encoder.pre_encode
        layer.forward = lambda x: nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).float()

    assert patterns(reference, tmp_path, after_build=rewrite) == []
    assert torch.get_default_dtype() is torch.float32
