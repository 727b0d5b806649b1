"""`nest-ssl explain`: what is made of what the commands wrote, and what the trainers write for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from train_nest import NEST

from nest_ssl.base.errors import UserError
from nest_ssl.cli.train import train
from nest_ssl.recording.evidence import (
    NoiseFloor,
    Observer,
    Operators,
    Schedule,
    read_evidence,
    seal_of,
)
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.evidence import plan
from tests.cli.explained_pair import TINY, Explain, gathered, opened
from tests.compare.builder import edit_config, edit_index, edit_tensors


def test_the_floor_is_bound_and_the_run_certifies_itself(
    copied: Path, explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(copied, "--evidence=floor,observer") == 4  # the settings of the optimizer are not the same
    said = capsys.readouterr().out
    assert "explain: reference: noise floor, without a recorder, about" in said and "exit code" not in said
    reference, candidate = opened(copied)
    folder = copied / "evidence"
    for step in (0, 1):
        floor = read_evidence(folder / f"floor/step_{step}/noise_floor.json", NoiseFloor)
        assert (floor.reference, floor.step, floor.repeats) == (seal_of(reference.index), step, 8)
    observer = read_evidence(folder / "observer.json", Observer)
    assert (observer.reference, observer.candidate) == (seal_of(reference.index), seal_of(candidate.index))
    assert [(check.what, check.side, check.step, check.differing) for check in observer.checks] == [
        ("repeats", "reference", None, 0), ("restarts", "reference", 0, 0), ("restarts", "reference", 1, 0),
        ("unwatched", "reference", None, 0), ("unwatched", "candidate", None, 0),
    ]  # fmt: skip
    assert all(check.compared > 90 for check in observer.checks)
    assert {name: kind.had for name, kind in gathered(copied).items()} == {"floor": True, "observer": True}
    left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert [name for name in left if not name.endswith(".log")] == [
        "floor/step_0/noise_floor.json", "floor/step_1/noise_floor.json", "floor/validation_floor.json",
        "gathered.json", "observer.json",
    ]  # fmt: skip
    assert json.loads((copied / "report" / "report.json").read_text())["exit_code"] == 4


def test_a_reference_that_does_not_repeat_itself_has_no_floor(
    copied: Path, explain: Explain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nest_ssl.run.evidence.REPEATS", 1)
    edit_tensors(copied / "nemo", "step_1/parameter_weights.pt", lambda w: next(iter(w.values())).view(-1)[0].add_(1))
    assert explain(copied, "--evidence=floor") != 0
    assert (
        "explain: no floor: the reference does not repeat itself: step_1/parameter_weights.pt: "
        in capsys.readouterr().out
    )
    assert not (copied / "evidence/floor/step_0/noise_floor.json").exists()
    repeats = read_evidence(copied / "evidence" / "observer.json", Observer).checks[0]
    assert (repeats.what, repeats.differing) == ("repeats", 1) and repeats.first.startswith(
        "step_1/parameter_weights.pt"
    )


def test_operators_and_learning_rates_of_both_sides_are_bound(
    copied: Path, explain: Explain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nest_ssl.run.evidence.RATES", 1000)
    explain(copied, "--evidence=operators,schedule")
    reference, candidate = opened(copied)
    for name, kind in (("operators", Operators), ("schedule", Schedule)):
        for side in ("reference", "candidate"):
            found = read_evidence(copied / "evidence" / name / f"{side}.json", kind)
            assert (found.reference, found.candidate) == (seal_of(reference.index), seal_of(candidate.index))
            assert (found.side, gathered(copied)[name].had) == (side, True)
    assert not (copied / "evidence" / "traced").exists()


def test_weights_that_only_the_recorder_sees_are_found(copied: Path, explain: Explain) -> None:
    """As if recording had changed them."""
    edit_index(
        copied / "nest", lambda index: index["weights_at_end"].update({next(iter(index["weights_at_end"])): "0" * 64})
    )
    explain(copied, "--evidence=observer")
    checks = {check.side: check for check in read_evidence(copied / "evidence" / "observer.json", Observer).checks}
    assert (checks["reference"].differing, checks["candidate"].differing) == (0, 1)


def test_what_does_not_fit_the_disk_is_not_tried(
    copied: Path, explain: Explain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = sum(entry.bytes for entry in opened(copied)[0].index.files.values()) + 1e6  # for one more of them
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    jobs = plan(*opened(copied), copied / "evidence", ["replay", "float64", "floor"])
    assert [job.what for job in jobs] == ["noise floor", "replay"]
    explain(copied, "--collect", "--evidence=float64")
    assert "explain: no float64: it writes " in capsys.readouterr().out
    assert "are free at" in gathered(copied)["float64"].why


def test_a_run_that_fails_is_said_and_the_comparison_is_made(
    copied: Path, explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "evidence" / "floor" / "step_0").mkdir(parents=True)
    stale = copied / "evidence" / "floor" / "step_0" / "noise_floor.json"
    stale.write_text("{}")
    edit_config(copied / "nemo", lambda config: config["model"].update(num_clases=1))
    assert explain(copied, "--evidence=floor") == 4
    said = capsys.readouterr().out
    assert "exit code 3: error: unknown key: model.num_clases" in said
    assert "explain: no floor: its run failed, see the logs in this folder; " in said
    assert not stale.exists()


def test_the_weights_at_the_end_are_in_the_index(pair: Path, tmp_path: Path) -> None:
    index = open_recording(pair / "nemo").index
    assert len(index.weights_at_end) == len(index.tensors["step_1/parameter_weights.pt"])
    assert index.weights_at_end != {n: e.digest for n, e in index.tensors["step_1/parameter_weights.pt"].items()}
    train(NEST, [*TINY[:-1], "save_steps=0,2", f"output_dir={tmp_path / 'nest'}"])
    last = open_recording(tmp_path / "nest").index
    after = {name: entry.digest for name, entry in last.tensors["step_2/parameter_weights.pt"].items()}
    assert last.weights_at_end == index.weights_at_end == after


def test_an_older_recording_does_not_say_what_its_weights_were_in_the_end(
    copied: Path, explain: Explain, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of its last recorded step are others: a third batch was trained. They are not compared."""
    edit_index(copied / "nemo", lambda index: index.pop("weights_at_end"))
    explain(copied, "--collect", "--evidence=observer")
    assert "nemo does not have the weights at the end of training" in capsys.readouterr().out
    assert "without a recorder" not in " ".join(job.what for job in plan(*opened(copied), copied, ["observer"]))


def test_a_run_can_stop_where_its_recording_is_complete(pair: Path, tmp_path: Path) -> None:
    train(NEST, [*TINY, "stop_when_recorded=true", f"output_dir={tmp_path / 'nest'}"])
    stopped, whole = open_recording(tmp_path / "nest"), open_recording(pair / "nemo")
    assert stopped.index.weights_at_end == {
        name: entry.digest for name, entry in whole.index.tensors["step_1/parameter_weights.pt"].items()
    }  # the second batch was the last
    steps = [{n: t for n, t in side.index.tensors.items() if "/" in n} for side in (stopped, whole)]
    assert steps[0] == steps[1]  # but for the validation, which now comes behind the second batch
    assert stopped.index.tensors != whole.index.tensors


def test_several_runs_in_a_process_are_those_of_processes_of_their_own(pair: Path, tmp_path: Path) -> None:
    """The second run of `pair` came behind another in one process."""
    one = [*TINY, "model.optim.eps=1e-6", f"output_dir={tmp_path / 'nest'}"]
    (tmp_path / "file").write_text("")
    refused = [*TINY, f"output_dir={tmp_path / 'file'}"]
    said = "the output folder is a file.* Refused as well: the output folder is a file"
    with pytest.raises(UserError, match=said):  # two are refused, the other is made
        train(NEST, [*refused, "--then", *refused, "--then", *one])
    assert open_recording(tmp_path / "nest").index.tensors == open_recording(pair / "nest").index.tensors
    assert torch.is_grad_enabled()
