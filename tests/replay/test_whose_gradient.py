"""Whose a gradient is: of the module that makes it, not of one called once more, nor of one that hands it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tests.replay.conftest import blamed
from tests.replay.test_kinds_of_modules import WIDTH, Cube, Exchanged, fed, train


class Again(Exchanged):
    """Calls the norm of one branch in the other one too."""

    def __init__(self, exchanged: bool = False) -> None:
        super().__init__(exchanged)
        self.first = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Tanh())
        self.second = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.one((self.second if self.exchanged else self.first)(x))
        found: Tensor = x + self.three(self.second(x))
        return found


def test_own_code_that_calls_a_module_once_more_is_blamed_and_not_that_module(tmp_path: Path) -> None:
    """Neither for its gradient, which is the sum of both calls, nor for its statistics, nor is what is in it."""
    found = fed(train(tmp_path, Again), lambda: Again(exchanged=True))
    assert blamed(found) == {"": {"forward", "backward"}}


class Handing(nn.Module):
    """Hands its input on to another module, which makes the gradient of it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.outer, self.after = nn.Linear(WIDTH, WIDTH), nn.Sequential(nn.Sequential(Cube())), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.after(self.outer(self.before(x)))
        return found


def test_who_only_hands_a_tensor_on_is_not_blamed_for_its_gradient(tmp_path: Path) -> None:
    def innermost(model: Any) -> None:
        model.outer[0][0].slope = 2.0

    def around(model: Any) -> None:
        model.outer.register_forward_pre_hook(lambda _, given: (given[0].clone(),))
        model.outer[0].register_forward_pre_hook(lambda _, given: given[0].register_hook(lambda g: g * 2) and None)

    recorded = train(tmp_path, Handing)
    assert blamed(fed(recorded, Handing, innermost)) == {"outer.0.0": {"backward"}}
    assert blamed(fed(recorded, Handing, around)).keys() <= {"outer", "outer.0"}


class Scaling(nn.Module):
    """Scales what it hands on."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = nn.Dropout(0.0), factor

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x if self.factor == 1 else x * self.factor)
        return found


def test_who_hands_a_tensor_on_as_the_reference_did_not_is_blamed(tmp_path: Path) -> None:
    def build(factor: float) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), Scaling(factor), nn.Linear(WIDTH, WIDTH))

    recorded = train(tmp_path, lambda: build(2.0))
    assert blamed(fed(recorded, lambda: build(1.0))) == {"1": {"forward", "backward"}}


class WithoutBias(nn.Module):
    """A linear layer whose bias is zero at first; with `functional` its weight alone is used, and no module called."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.linear, self.functional = nn.Linear(WIDTH, WIDTH), functional
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = nn.functional.linear(x, self.linear.weight) if self.functional else self.linear(x)
        return found


def test_who_leaves_a_module_and_its_gradient_out_is_blamed(tmp_path: Path) -> None:
    def build(functional: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), WithoutBias(functional))

    found = fed(train(tmp_path, lambda: build(False)), lambda: build(True))
    assert [unit.phase for unit in found.units if unit.module == "1" and unit.deviations and unit.step == 0] == [
        "backward"
    ]
    assert blamed(found).keys() == {"1"}
