"""The update, after minus before, held against itself: at warm-up it is smaller than any tolerance of a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.recording import layout as files
from nest_ssl.recording.address import Kind
from tests.compare.builder import Plan, judge, record, remove

WARM_UP = {"lr": 1e-7, "weight_decay": 0.0}
Weights = dict[str, Tensor]


class Planted:
    """Puts other weights in the place of those that the optimizer left: what `change` makes of before and after."""

    def __init__(self, change: Callable[[str, Tensor, Tensor], Tensor]) -> None:
        self.change, self.before = change, Weights()

    def before_step(self, step: int, model: nn.Module) -> None:
        self.before = {name: value.detach().clone() for name, value in model.named_parameters()}

    def after_step(self, step: int, model: nn.Module) -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(self.change(name, self.before[name], value))


def negated(name: str, before: Tensor, after: Tensor) -> Tensor:
    return 2 * before - after


def never(name: str, before: Tensor, after: Tensor) -> Tensor:
    return before


def one_is_put_back(name: str, before: Tensor, after: Tensor) -> Tensor:
    return before if name == "encoder.layers.1.linear1.weight" else after


def half_of_the_parameters(name: str, before: Tensor, after: Tensor) -> Tensor:
    return before if name.startswith("encoder.layers") else after


@pytest.fixture(scope="module")
def warming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("warming") / "nemo", Plan(optimizer=WARM_UP))


def updates(comparison: object) -> Iterator[tuple[str | None, bool]]:
    for finding in comparison.rung("weights").findings:  # type: ignore[attr-defined]
        if finding.address.kind == Kind.UPDATE:
            yield finding.address.module, finding.within


@pytest.mark.parametrize("change", [negated, never, one_is_put_back, half_of_the_parameters])
def test_a_wrong_update_is_beyond_a_tolerance_that_its_weights_are_within(
    warming: Path, tmp_path: Path, change: Callable[[str, Tensor, Tensor], Tensor]
) -> None:
    planted = Planted(change)
    hooks = {"before_step": planted.before_step, "after_step": planted.after_step}
    plan = Plan("nest", "0.1.0", steps=(0, 1), optimizer=WARM_UP, **hooks)
    comparison = judge(warming, record(tmp_path / "nest", plan), atol=1e-5, rtol=1e-5)
    assert comparison.verdict == "diverged"
    beyond = [finding for finding in comparison.rung("weights").findings if not finding.within]
    assert beyond and {finding.address.kind for finding in beyond} == {Kind.UPDATE}


def test_the_update_of_a_correct_rewrite_is_within_it(warming: Path, tmp_path: Path) -> None:
    """Also that of gradients whose true value is zero, which are rounding noise and so are their updates."""

    def rewrite(model: nn.Module) -> None:
        layer = model.encoder.pre_encode
        layer.forward = lambda x: nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).float()

    plan = Plan("nest", "0.1.0", optimizer=WARM_UP, after_build=rewrite)
    comparison = judge(warming, record(tmp_path / "nest", plan), atol=1e-4, rtol=1e-4)
    assert comparison.verdict == "equivalent"
    found = [finding for finding in comparison.rung("weights").findings if finding.address.kind == Kind.UPDATE]
    assert found and all(finding.metrics.relative > 0 for finding in found)


def test_where_the_weights_before_are_not_known_no_update_is(tmp_path: Path) -> None:
    def nudged(step: int, model: nn.Module) -> None:
        model.decoder.weight.data += 1e-3

    sides = [record(tmp_path / name, Plan(name, steps=(1,), **hooks)) for name, hooks in (
        ("nemo", {}), ("nest", {"after_step": nudged}))]  # fmt: skip
    assert list(updates(judge(*sides))) == [("decoder", False)]
    remove(sides[1], f"step_1/{files.STEP_START}")
    comparison = judge(*sides)
    assert comparison.verdict == "diverged"
    assert list(updates(comparison)) == []
