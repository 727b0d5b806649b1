"""NeMo's recording fed to the port's modules and trainer, and the port's to NeMo's: every bit comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from aligning import TWO_STEPS, record
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.cli.replay import main as replay_command
from nest_ssl.recording.evidence import Replay, read_evidence
from nest_ssl.recording.reader import open_recording

PHASES = ("batch", "forward", "loss", "backward", "clipping", "optimizer", "schedule")


def replay(reference: Path, candidate: Path, out: Path) -> Replay:
    assert replay_command(["--reference", str(reference), "--candidate", str(candidate), "--out", str(out)]) == 0
    return read_evidence(out, Replay)


@pytest.mark.parametrize("recipe", ["quick", "full"])
@pytest.mark.parametrize("candidate", ["nest", "nemo"])
def test_the_one_sides_recording_comes_out_of_the_other(
    tmp_path: Path, recorded: Callable[..., Path], recipe: str, candidate: str
) -> None:
    nemo, nest = (recorded(subject, f"run={recipe}", *TWO_STEPS) for subject in (NEMO, NEST))
    one, other = (nemo, nest) if candidate == "nest" else (nest, nemo)
    found, reference = replay(one, other, tmp_path / "replay.json"), open_recording(one)
    assert [unit for unit in found.units if unit.outcome != "same bits"] == []
    phases = Counter(unit.phase for unit in found.units)
    assert all(phases[phase] for phase in PHASES)
    assert phases["forward"] == sum(len(reference.step(step).calls()) for step in (0, 1))
    with_gradient = [call for step in (0, 1) for call in reference.step(step).calls() if call.output_grads]
    sums = [unit for unit in found.units if unit.phase == "backward" and unit.call is None]
    assert phases["backward"] == len(with_gradient) + len(sums)
    gradients = [g for step in (0, 1) for g in reference.step(step).gradients().values() if g is not None]
    assert sum(unit.compared for unit in found.units if unit.phase == "backward") > len(gradients)
    drew = {unit.module for unit in found.units if unit.phase == "draws"}
    assert "mask_processor" in drew and ("encoder.layers.0.dropout" in drew) == (recipe == "full")
    assert set(found.only_reference) | set(found.only_candidate) <= {"spec_augmentation"}  # NeMo's, never called


@pytest.mark.parametrize("candidate", ["nest", "nemo"])
def test_a_setting_of_the_candidates_own_is_found_in_its_place(
    tmp_path: Path, recorded: Callable[..., Path], candidate: str
) -> None:
    """Three at once: the guard in the features' logarithm, the scaling of the encoder's input, AdamW's eps."""
    subject, other = (NEMO, NEST) if candidate == "nemo" else (NEST, NEMO)
    edits = ["model.preprocessor.log_zero_guard_value=1e-5", "model.optim.eps=1e-7", "model.encoder.xscaling=false"]
    record(subject, tmp_path / candidate, *TWO_STEPS, *(f"+{edit}" for edit in edits))
    found = replay(recorded(other, "run=quick", *TWO_STEPS), tmp_path / candidate, tmp_path / "replay.json")
    alone = [unit for unit in found.units if not unit.judged_with]  # what is seen through the call around it is not
    wrong = {(unit.module, unit.phase) for unit in alone if unit.outcome != "same bits"}
    places = {("preprocessor.featurizer", "forward"), ("encoder.pos_enc", "forward"), (None, "optimizer")}
    assert places <= wrong <= places | {("encoder.pos_enc", "backward")}
