"""Recordings of a model and a loop that are not ours: batches are pairs, the model returns one tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nest_ssl.compare import compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.record.loop import recording
from nest_ssl.recording.reader import open_recording
from tests.compare.builder import first, statuses


class Net(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.first, x, use_reentrant=False) if self.recompute else self.first(x)
        return self.last(torch.relu(self.norm(hidden)))


def train(
    out: Path, plant: Callable[[Net], None] = lambda net: None, recompute: bool = False, nested: bool = False
) -> Path:
    torch.manual_seed(0)
    model = Net(recompute)
    plant(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with recording(out, model, steps=[0, 1]) as session:
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(3, 4, generator=generator), torch.randn(3, 1, generator=generator)
            session.batch([{"inputs": {"x": x}}, y] if nested else (x, y))
            loss = nn.functional.mse_loss(model(x), y)
            session.loss(loss)
            optimizer.zero_grad()
            loss.backward()
            session.backward_done()
            optimizer.step()
            session.step_done(optimizer)
    return out


def compare(reference: Path, candidate: Path) -> Comparison:
    return compare_recordings(open_recording(reference), open_recording(candidate), declared=[])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_twins_are_identical(tmp_path: Path, nested: bool, recompute: bool) -> None:
    comparison = compare(*(train(tmp_path / name, recompute=recompute, nested=nested) for name in ("one", "other")))
    assert (comparison.verdict, comparison.exit_code) == ("identical", 0)
    assert comparison.rung("batch").compared == 4
    assert comparison.facts.batch == "", "nothing knows what its batch is"
    assert [loss.reference for loss in comparison.losses] == [loss.candidate for loss in comparison.losses]


def test_a_fault_is_named(tmp_path: Path) -> None:
    def plant(net: Net) -> None:
        net.norm.eps = 0.1

    comparison = compare(train(tmp_path / "one"), train(tmp_path / "other", plant))
    assert (comparison.exit_code, first(comparison)) == (1, ("forward", 0, "norm", 0, "output"))
    assert comparison.unexplained == []


def test_activations_computed_again_are_no_other_forward(tmp_path: Path) -> None:
    comparison = compare(train(tmp_path / "one"), train(tmp_path / "other", recompute=True))
    assert statuses(comparison)["forward"] == statuses(comparison)["weights"] == "identical"
