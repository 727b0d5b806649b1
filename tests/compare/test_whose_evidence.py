"""Whose evidence it is: of these two recordings, or of others; whole, or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.compare import compare_recordings
from nest_ssl.compare.evidence import evidence_on, open_evidence
from nest_ssl.recording import evidence as files
from nest_ssl.recording.reader import open_recording
from tests.compare.builder import Plan, edit_config, noted, record
from tests.compare.evidence import write_replay
from tests.compare.test_float64 import in_float64
from tests.compare.test_proof import ONE_STEP, nest, reference, rewritten, rounded

__all__ = ["reference"]


def test_evidence_of_other_recordings_is_refused(reference: Path, tmp_path: Path) -> None:
    candidate, other = nest(tmp_path), record(tmp_path / "other" / "nest", Plan("nest", seed=7, steps=ONE_STEP))
    folder = tmp_path / files.FOLDER
    write_replay(folder, reference, candidate, [])
    sides = open_recording(reference), open_recording(other)
    with pytest.raises(UserError, match="evidence of other recordings"):
        open_evidence(folder, *sides)
    with pytest.raises(UserError, match="evidence of other recordings"):
        evidence_on(*sides, folder)
    assert open_evidence(folder, open_recording(reference), open_recording(candidate)).replay is not None


def test_what_lies_beside_the_reference_and_is_out_of_date_is_a_note(reference: Path, tmp_path: Path) -> None:
    one = record(tmp_path / "out" / "nemo", Plan(steps=ONE_STEP))
    candidate = record(tmp_path / "out" / "nest", Plan("nest", steps=ONE_STEP, after_build=rewritten))
    before = record(tmp_path / "before" / "nemo", Plan(seed=7, steps=ONE_STEP))
    write_replay(tmp_path / "out" / files.FOLDER, before, candidate, [])
    sides = open_recording(one), open_recording(candidate)
    found = evidence_on(*sides)
    comparison = compare_recordings(*sides, evidence=found, declared=[])
    assert len(noted(comparison, "stale_evidence")) == 1 and not comparison.proof.had
    write_replay(tmp_path / "out" / files.FOLDER, one, candidate, rounded())
    found = evidence_on(*sides)
    assert found is not None and found.replay is not None and not found.stale
    assert evidence_on(open_recording(reference), sides[1]) is None


def test_a_damaged_file_of_evidence_is_one_line(reference: Path, tmp_path: Path) -> None:
    (tmp_path / files.REPLAY).write_text('{"schema": "nest-ssl-replay/1"}')
    with pytest.raises(UserError, match="damaged evidence"):
        open_evidence(tmp_path, open_recording(reference), open_recording(reference))


@pytest.mark.parametrize("change", [{"seed": 7}, {"model": {}}])
def test_a_float64_run_of_another_experiment_is_refused(
    reference: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    for name in ("nemo", "nest"):
        made = in_float64(tmp_path / files.FLOAT64, name)
        edit_config(made, lambda config: config.update(change))
    candidate = nest(tmp_path)
    with pytest.raises(UserError, match="evidence of other recordings"):
        open_evidence(tmp_path, open_recording(reference), open_recording(candidate))
    assert torch.get_default_dtype() is torch.float32
