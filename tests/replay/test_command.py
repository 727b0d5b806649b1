"""`nest-ssl replay`: from two recordings to the evidence file; what cannot be replayed is one line."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf
from train_nest import NEST

from nest_ssl.base.errors import InterruptedRun, UserError
from nest_ssl.base.rng import generator_states
from nest_ssl.cli.compare import main as compare
from nest_ssl.cli.replay import main
from nest_ssl.config.compose import data_paths
from nest_ssl.recording.evidence import Replay, read_evidence, seal_of
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run import candidate as candidates
from tests.compare.builder import edit_index, edit_tensors
from tests.replay.conftest import blamed, recorded


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """As NeMo 2.4 has it."""
    return recorded(tmp_path_factory.mktemp("old") / "nest", "nemo=2.4.1")


def words(reference: Path, candidate: Path, out: Path) -> list[str]:
    return ["--reference", str(reference), "--candidate", str(candidate), "--out", str(out)]


def test_an_older_generations_recording_through_the_newest(
    old: Recording, reference: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What changed from NeMo 2.4 to 3.0 is in the features, the masks and the masked convolutions, and nowhere else."""
    out = tmp_path / "evidence" / "replay.json"
    assert main([*words(old.path, reference.path, out), "--steps", "1"]) == 0
    found = read_evidence(out, Replay)
    assert (found.reference, found.candidate) == (seal_of(old.index), seal_of(reference.index))
    assert found.precision == "float32" and {unit.step for unit in found.units} == {1}
    assert found.sources["preprocessor.featurizer"].startswith("nest_ssl/model/features.py:")
    assert blamed(found) == {
        "preprocessor.featurizer": {"forward"},
        "mask_processor": {"forward", "draws"},
        "encoder.pre_encode": {"forward"},
        "encoder.pre_encode.conv": {"forward"},
    }
    raised = {unit.module for unit in found.units if unit.outcome == "raised"}
    assert raised == {"encoder.pre_encode", "encoder.pre_encode.conv"}  # it is called with lengths since
    text = capsys.readouterr().out
    assert "replay: forward: " in text and str(out) in text


def test_in_float64_whatever_it_was_trained_in(
    double_reference: Recording, reference: Recording, tmp_path: Path
) -> None:
    out = tmp_path / "replay.json"
    assert main([*words(double_reference.path, reference.path, out), "--precision", "float64"]) == 0
    found = read_evidence(out, Replay)
    assert found.precision == "float64" and blamed(found) == {}


def test_code_that_has_changed_since_is_no_longer_that_candidate(reference: Recording, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(reference.path, tmp_path / "nest"))

    def another(index: dict[str, Any]) -> None:
        index["sources"]["nest_ssl.model.features.FilterbankFeatures"]["sha256"] = "0" * 64

    edit_index(copied, another)
    with pytest.raises(UserError, match=r"the code has changed since it was recorded: nest_ssl/model/features.py"):
        main(words(reference.path, copied, tmp_path / "replay.json"))
    assert not (tmp_path / "replay.json").exists()


def test_code_that_the_recording_does_not_know_is_refused_or_said(reference: Recording, tmp_path: Path) -> None:
    _, model = candidates.build_candidate(NEST, data_paths(OmegaConf.create(reference.config)))
    assert candidates.refuse_other_code(model, reference) == ""
    copied = Path(shutil.copytree(reference.path, tmp_path / "nest"))
    edit_index(copied, lambda index: index["sources"].pop("nest_ssl.model.features.FilterbankFeatures"))
    with pytest.raises(UserError, match=r"features.py: .*FilterbankFeatures is on one side only"):
        candidates.refuse_other_code(model, open_recording(copied))
    edit_index(copied, lambda index: index.pop("sources"))
    assert "was not checked" in candidates.refuse_other_code(model, open_recording(copied))


@pytest.mark.parametrize(
    ("raised", "number"), [(SIGTERMException(), signal.SIGTERM), (SystemExit(1), signal.SIGINT)], ids=["TERM", "INT"]
)
def test_a_signal_has_its_own_exit_code(raised: BaseException, number: int) -> None:
    def fit(_: Any) -> None:
        raise raised

    trainer, loops = SimpleNamespace(callbacks=[], fit=fit), {0: SimpleNamespace()}
    with pytest.raises(InterruptedRun) as stopped:
        candidates.run_training_loop(trainer, torch.nn.Linear(1, 1), generator_states(), loops)  # type: ignore[arg-type]
    assert stopped.value.signal_number == number


def test_a_reference_that_is_damaged_is_not_the_candidates_fault(reference: Recording, tmp_path: Path) -> None:
    """Its update is read in the midst of the candidate's own loop."""
    copied = Path(shutil.copytree(reference.path, tmp_path / "nest"))
    damaged = copied / "step_1" / "optimizer_state.pt"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.raises(UserError, match=r"damaged recording: .*step_1/optimizer_state.pt"):
        main([*words(copied, reference.path, tmp_path / "replay.json"), "--no-verify", "--steps=1"])


def test_where_nothing_is_said_it_is_written_where_the_comparison_looks(
    reference: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []
    for option, folder in (("--reference", tmp_path / "a" / "nest"), ("--candidate", tmp_path / "b" / "nest")):
        folder.parent.mkdir()
        folder.symlink_to(reference.path)
        sides += [option, str(folder)]
    assert main([*sides, "--steps=1"]) == 0
    compare([*sides, "--steps=1", "--out", str(tmp_path / "report")])
    evidence = {
        one["kind"]: one["had"] for one in json.loads((tmp_path / "report/report.json").read_text())["evidence"]
    }
    assert (tmp_path / "a" / "evidence" / "replay.json").is_file() and evidence["replay"]


def test_another_loops_recording_is_refused(reference: Recording, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(reference.path, tmp_path / "mine"))
    edit_index(copied, lambda index: index["trainer"].update(name="mine"))
    with pytest.raises(UserError, match="a recording of another trainer"):
        main(words(reference.path, copied, tmp_path / "replay.json"))


def test_a_step_that_was_not_recorded(reference: Recording, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a step that was not recorded"):
        main([*words(reference.path, reference.path, tmp_path / "replay.json"), "--steps", "7"])


def test_a_reference_that_lost_one_bit_is_found_where_it_was_lost(reference: Recording, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(reference.path, tmp_path / "nest"))

    def flip(value: dict[str, Any]) -> None:
        call = next(call for call in value["calls"] if call["module"] == "encoder.layers.0.conv.pointwise_conv2")
        bits = call["output"].view(torch.int32)
        bits.view(-1)[3] ^= 1

    edit_tensors(copied, "step_0/layer_outputs.pkl", flip)
    found = main(words(copied, reference.path, tmp_path / "replay.json"))
    assert found == 0
    wrong = {(u.step, u.module, u.phase) for u in read_evidence(tmp_path / "replay.json", Replay).units
             if u.outcome == "other bits"}  # fmt: skip
    assert (0, "encoder.layers.0.conv.pointwise_conv2", "forward") in wrong
    # Its container made of it what the reference had made of the right one.
    assert {module for _, module, _ in wrong} <= {"encoder.layers.0.conv.pointwise_conv2", "encoder.layers.0.conv"}


def test_it_needs_the_candidates_environment(
    reference: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ImportError("No module named 'nemo'")

    subject = candidates.Subject("nemo", "nemo_toolkit", missing, lambda *_: None)
    with pytest.raises(UserError, match="Run in its environment"):
        candidates.replay_recording(subject, reference, open_recording(reference.path))
