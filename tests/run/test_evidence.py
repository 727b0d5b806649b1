"""Which kinds of evidence two recordings and the disk have no room for, or nothing to be made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import nest_ssl
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run.evidence import hindrances
from tests.compare.builder import edit_index
from tests.record.loop import recorded_step

PACKAGES = {"nemo": "nemo_toolkit", "nest": "nest-ssl"}
BOTH = ["float64", "floor"]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Recording, Recording]:
    """Two recordings of one size, as if of both trainers."""
    for side, package in PACKAGES.items():
        model = nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with nest_ssl.recording(tmp_path / side, model, steps=[0]) as recorder:
            inputs = torch.ones(3, 4)
            recorder.batch(inputs)
            recorded_step(recorder, model, optimizer, inputs)
        edit_index(tmp_path / side, lambda index, name=package: index["trainer"].update(package=name))
    return open_recording(tmp_path / "nemo"), open_recording(tmp_path / "nest")


def leave_room(pair: tuple[Recording, Recording], monkeypatch: pytest.MonkeyPatch, recordings: int) -> None:
    """Have the disk as many bytes free as so many of the larger recording take."""
    free = recordings * max(sum(entry.bytes for entry in one.index.files.values()) for one in pair)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))


def test_kinds_are_held_against_the_disk_together(
    pair: tuple[Recording, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_room(pair, monkeypatch, 4)
    assert hindrances(["float64"], *pair, tmp_path) == hindrances(["floor"], *pair, tmp_path) == {}
    assert [*hindrances(BOTH, *pair, tmp_path)] == ["floor"]
    leave_room(pair, monkeypatch, 5)
    assert hindrances(BOTH, *pair, tmp_path) == {}
    leave_room(pair, monkeypatch, 3)
    assert [*hindrances(BOTH, *pair, tmp_path)] == ["float64"]


def test_evidence_that_stays_is_no_room(
    pair: tuple[Recording, Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That in float64 is written over where float64 is gathered again, and nowhere else."""
    for name in "abcd":
        shutil.copytree(pair[0].path, tmp_path / "evidence" / "float64" / name)
    leave_room(pair, monkeypatch, 0)
    assert [*hindrances(["floor"], *pair, tmp_path / "evidence")] == ["floor"]
    leave_room(pair, monkeypatch, 1)
    assert hindrances(BOTH, *pair, tmp_path / "evidence") == {}


@pytest.mark.parametrize("side", PACKAGES)
@pytest.mark.parametrize(
    ("record", "held"),
    [("boundaries", "some modules alone"), ("operators", "operators alone"), ("digest", "digests alone")],
)
def test_no_float64_where_either_side_has_not_all(
    pair: tuple[Recording, Recording], tmp_path: Path, side: str, record: str, held: str
) -> None:
    edit_index(tmp_path / side, lambda index: index.update(level={"record": record}))
    opened = open_recording(tmp_path / "nemo"), open_recording(tmp_path / "nest")
    found = hindrances(["replay", *BOTH], *opened, tmp_path)
    assert found["float64"] == f"{side} has {held} (record={record})"
    assert {*found} == ({"replay", *BOTH} if side == "nemo" else {"float64"})
