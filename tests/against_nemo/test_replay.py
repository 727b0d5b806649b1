"""NeMo's recording fed to the port's modules and trainer, and the port's to NeMo's: every bit comes out."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest
from aligning import ONE_PROCESS, record
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.cli.replay import main as replay_command
from nest_ssl.recording.evidence import Replay, read_evidence
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.subject import Subject

STEPS = ["size=tiny", "save_steps=0,1", "batches=2", "model.train_ds.batch_size=3", *ONE_PROCESS]
PHASES = ("batch", "forward", "loss", "backward", "clipping", "optimizer", "schedule")


@functools.cache
def recorded(folder: Path, recipe: str) -> tuple[Path, Path]:
    for subject in (NEMO, NEST):
        record(subject, folder / recipe / subject.name, f"run={recipe}", *STEPS)
    return folder / recipe / "nemo", folder / recipe / "nest"


@pytest.fixture(scope="session")
def folder(release: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


def replay(reference: Path, candidate: Path, *options: str) -> Replay:
    out = candidate.parent / f"{candidate.name}.json"
    words = ["--reference", str(reference), "--candidate", str(candidate), "--out", str(out)]
    assert replay_command([*words, *options]) == 0
    return read_evidence(out, Replay)


@pytest.mark.parametrize("recipe", ["quick", "full"])
@pytest.mark.parametrize("candidate", ["nest", "nemo"])
def test_the_one_sides_recording_comes_out_of_the_other(folder: Path, recipe: str, candidate: str) -> None:
    nemo, nest = recorded(folder, recipe)
    one, other = (nemo, nest) if candidate == "nest" else (nest, nemo)
    found, reference = replay(one, other), open_recording(one)
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
def test_a_setting_of_the_candidates_own_is_found_in_its_place(folder: Path, tmp_path: Path, candidate: str) -> None:
    """Three at once: the guard in the features' logarithm, the scaling of the encoder's input, AdamW's eps."""
    nemo, nest = recorded(folder, "quick")
    subject: Subject = {"nemo": NEMO, "nest": NEST}[candidate]
    edits = ["model.preprocessor.log_zero_guard_value=1e-5", "model.optim.eps=1e-7", "model.encoder.xscaling=false"]
    record(subject, tmp_path / candidate, *STEPS, *(f"+{edit}" for edit in edits))
    found = replay(nest if candidate == "nemo" else nemo, tmp_path / candidate)
    alone = [unit for unit in found.units if not unit.judged_with]  # what is seen through the call around it is not
    wrong = {(unit.module, unit.phase) for unit in alone if unit.outcome != "same bits"}
    places = {("preprocessor.featurizer", "forward"), ("encoder.pos_enc", "forward"), (None, "optimizer")}
    assert places <= wrong <= places | {("encoder.pos_enc", "backward")}
