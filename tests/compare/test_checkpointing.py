"""Activation checkpointing is no difference of numbers: layers that backward runs again are recorded apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nest_ssl.recording.reader import open_recording
from tests.compare.builder import Model, Plan, judge, record


def model() -> nn.Module:
    built = Model()
    for layer in built.encoder.layers:
        layer.batch_norm = nn.Identity()  # a second forward would count its statistics twice
    return built


def checkpointed() -> nn.Module:
    built = model()
    for layer in built.encoder.layers:
        forward = layer.forward

        def again(x: Tensor, pad_mask: Tensor | None = None, forward: object = forward) -> Tensor:
            return checkpoint(forward, x, pad_mask, use_reentrant=False)

        layer.forward = again
    return built


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("checkpointing")
    return record(folder / "nemo", Plan(model=model)), record(folder / "nest", Plan(name="nest", model=checkpointed))


def test_the_verdict_is_identical(sides: tuple[Path, Path]) -> None:
    comparison = judge(*sides)
    assert comparison.first is None
    assert comparison.verdict == "identical"


def test_what_ran_again_is_kept_apart_and_well_formed(sides: tuple[Path, Path]) -> None:
    plain, again = (open_recording(side).step(0) for side in sides)
    assert [call.name for call in plain.calls()] == [call.name for call in again.calls()]
    assert plain.later_calls() == []
    assert {call.module for call in again.later_calls()} >= {"encoder.layers.0.linear1", "encoder.layers.1.linear1"}
