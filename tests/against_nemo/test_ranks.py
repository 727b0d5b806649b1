"""Two processes of real NeMo against two of the port, as NeMo's own recipe trains them (`ddp`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from aligning import NARROW, ONE_PROCESS, STARTS, assert_identical, compare, record
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.recording.ranks import read_ranks
from nest_ssl.recording.reader import open_recording

TWO_RANKS = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp_find_unused_parameters_true"]


def test_two_ranks(tmp_path: Path, nemo_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is random on; the second epoch too, for batches are shuffled in each anew."""
    monkeypatch.setattr(sys, "executable", nemo_python)  # which starts the ranks
    small = ["size=tiny", NARROW, *STARTS, "model.train_ds.batch_size=2", *ONE_PROCESS]
    settings = [*small, "run=full", "batches=3", "save_steps=0-2"]
    for subject in (NEMO, NEST):
        record(subject, tmp_path / subject.name, *settings, *TWO_RANKS)
    code, over = compare(tmp_path, "nemo", "nest")
    assert (code, over["verdict"], [rank["verdict"] for rank in over["ranks"]]) == (0, "identical", ["identical"] * 2)
    for side in ("reference", "candidate"):
        assert over[side]["parted"] is None and over[side]["parameters"] > 80 and over[side]["world_size"] == 2
    for rank in range(2):
        assert_identical(*compare(tmp_path, f"nemo/rank_{rank}", f"nest/rank_{rank}"))
    ranks = [open_recording(path) for path in read_ranks(tmp_path / "nest") or ()]
    assert [recording.index.rank for recording in ranks] == [0, 1]
    for number in range(3):
        one, other = (recording.step(number) for recording in ranks)
        audio = [step.batch()["audio"] for step in (one, other)]
        assert audio[0].shape != audio[1].shape or not torch.equal(*audio), "each rank has batches of its own"
        shared = [(one.gradients()[name], other.gradients()[name]) for name in one.gradients()]
        assert shared and all(torch.equal(*pair) for pair in shared), "gradients are those behind the all-reduce"
