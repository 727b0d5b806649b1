"""What is taken for the pictures, of recordings that do not have all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import nest_ssl
from tests.record.loop import recorded_step


def train(folder: Path, record: str, rate: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU())), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with nest_ssl.recording(folder, model, steps=[0], record=record) as recorder:
        inputs = torch.ones(3, 4)
        recorder.batch(inputs)
        recorded_step(recorder, model, optimizer, inputs)


@pytest.mark.parametrize("levels", [("operators", "operators"), ("operators", "modules"), ("modules", "operators")])
def test_a_recording_of_operators_alone_has_a_report(tmp_path: Path, levels: tuple[str, str]) -> None:
    sides = tmp_path / "reference", tmp_path / "candidate"
    for side, record, rate in zip(sides, levels, (0.1, 0.2), strict=True):
        train(side, record, rate)
    nest_ssl.report(nest_ssl.compare(*sides), tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()


def test_calls_that_a_level_leaves_out_are_not_said_to_be_computed_otherwise(tmp_path: Path) -> None:
    sides = tmp_path / "reference", tmp_path / "candidate"
    for side, record in zip(sides, ("modules", "boundaries"), strict=True):
        train(side, record, 0.1)
    nest_ssl.report(nest_ssl.compare(*sides), tmp_path / "report")
    said = " ".join((tmp_path / "report" / "report.md").read_text(encoding="utf-8").split())
    assert "made on one side only" not in said
    assert "modules of the candidate that were not recorded (record=boundaries" in said
