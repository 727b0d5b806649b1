"""A model that torch.compile compiles as a whole: compared by what goes in and comes out, and said to be so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nest_ssl
from nest_ssl.compare import compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.names import Renamed, uncompiled
from nest_ssl.recording.reader import open_recording
from nest_ssl.replay import replay
from tests.record.loop import recorded_step

WIDTH = 8
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch.compile asks for more than there is


class Net(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front, self.act, self.factor = nn.Linear(WIDTH, WIDTH), nn.GELU(), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.front(x)) * self.factor  # type: ignore[no-any-return]


def trained(out: Path, model: nn.Module) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    with nest_ssl.recording(out, model) as r:
        r.batch(x)
        recorded_step(r, model, optimizer, x)
    return model


def compared(reference: Path, candidate: Path) -> Comparison:
    one, other = open_recording(reference), open_recording(candidate)
    rename = uncompiled(one, other)
    return compare_recordings(one, Renamed(other, rename) if rename else other, declared=[])


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [lambda model: torch.compile(model, backend="eager"), in_place])
def test_a_whole_model(tmp_path: Path, compiled: object) -> None:
    trained(tmp_path / "plain", Net())
    model = trained(tmp_path / "compiled", compiled(Net()))  # type: ignore[operator]
    right = compared(tmp_path / "plain", tmp_path / "compiled")
    assert right.verdict == "identical" and right.rung("forward").compared > 0
    unseen = [note.values["modules"] for note in right.unseen if note.kind == "unseen_compiled"]
    assert unseen == (["(root)"] if isinstance(model, torch._dynamo.OptimizedModule) else [])
    trained(tmp_path / "wrong", compiled(Net(1.00001)))  # type: ignore[operator]
    wrong = compared(tmp_path / "plain", tmp_path / "wrong")
    assert wrong.verdict == "diverged"
    reference, candidate = open_recording(tmp_path / "plain"), open_recording(tmp_path / "compiled")
    rename = uncompiled(reference, candidate)
    units = replay(reference, model, rename=rename).units
    assert {unit.outcome for unit in units if unit.phase in ("forward", "backward")} == {"not replayed"}
    assert "torch.compile" in units[0].why
