"""The noise floor of real NeMo: training is what it was, and the floor is about the port's, which computes the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from aligning import ONE_PROCESS, SMALL, record
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.recording.evidence import FloorEntry, NoiseFloor, read_evidence
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run.floor import repeats

KINDS = {
    "everything random, clipped, accumulated": [
        "run=full", *ONE_PROCESS, "model.train_ds.batch_size=2", "trainer.gradient_clip_val=0.01",
        "trainer.accumulate_grad_batches=2",
    ],
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
}  # fmt: skip


def content(recording: Recording) -> dict[str, Any]:
    random = {step: json.loads((recording.path / f"step_{step}" / "rng.json").read_text()) for step in recording.steps}
    return {"tensors": recording.index.tensors, "rng": random, "before": recording.index.rng}


@pytest.mark.parametrize("kind", KINDS)
def test_nemo_trains_with_the_bits_that_it_has_without(
    tmp_path: Path, kind: str, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps before and behind the repeats: weights, gradients, optimizer, generators, batches."""
    monkeypatch.setattr(repeats, "LONGEST", 2)
    words = [*SMALL, "batches=3", "save_steps=all", *KINDS[kind]]
    record(NEMO, tmp_path / "alone", *words)
    record(NEMO, tmp_path / "measured", *words, "noise_floor=2")
    assert content(open_recording(tmp_path / "measured")) == content(open_recording(tmp_path / "alone"))
    for step in range(3):
        floor = read_evidence(tmp_path / "measured" / f"step_{step}" / "noise_floor.json", NoiseFloor)
        assert floor.restart_differing == 0 and floor.restart_compared > 300


def test_both_trainers_have_the_same_floor(tmp_path: Path, release: str) -> None:
    """The same weights are moved by the same coins, and what comes of it has the same bits."""
    floors = []
    for subject in (NEMO, NEST):
        record(subject, tmp_path / subject.name, *SMALL, "noise_floor=2", "save_steps=0")
        floor = read_evidence(tmp_path / subject.name / "step_0" / "noise_floor.json", NoiseFloor)
        floors.append({entry.place.address: entry for entry in floor.entries})
        assert floor.margins and all(0 < margin.floor < 1e-4 for margin in floor.margins[:10])

    def sizes(entry: FloorEntry) -> tuple[float, float, int]:
        return entry.relative_largest, entry.held_out, entry.flips

    assert floors[0].keys() == floors[1].keys()
    other = [place for place, entry in floors[0].items() if sizes(entry) != sizes(floors[1][place])]
    assert other == [] and any(math.isfinite(entry.relative_largest) for entry in floors[0].values())
