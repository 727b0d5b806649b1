"""Over many steps the first one that differs is found by hashes, and recorded in full."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from train_nest import NEST

from nest_ssl.base.errors import UserError
from nest_ssl.cli import bisect, compare, explain
from nest_ssl.compare.digests import compare_digests
from nest_ssl.model.nest import NestModel
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.bisect import forget
from nest_ssl.run.evidence import Job
from nest_ssl.run.experiment import run
from tests.test_planted_faults import STARTS

FIRST, STEPS = 3, 5
TINY = ["size=tiny", "overwrite=true", "save_steps=0", "batches=1", "model.train_ds.batch_size=2",
        "model.encoder.subsampling_conv_channels=4", *STARTS, "model.masking.mask_prob=0.05"]  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bisect") / "nest"
    assert run(NEST, [*TINY, f"output_dir={out}"]) == 0
    return out


def in_this_process(fault: int | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs run here; from batch `fault` on the candidate's last layer has another function; -1: it fails."""
    ran: list[str] = []

    class Here:
        def __init__(self, jobs: Sequence[Job], *_: Any) -> None:
            self.jobs = jobs

        def run(self) -> None:
            for job in self.jobs:
                ran.append(job.log)
                with monkeypatch.context() as patch:
                    if job.side == "candidate" and fault is not None:
                        plant(fault, patch)
                    if fault is not None and fault < 0 and job.side == "candidate":
                        return  # it crashes, and an earlier recording stays as it was
                    assert run(NEST, job.words[1:]) == 0

    monkeypatch.setattr(explain, "JobRunner", Here)
    monkeypatch.setattr(explain, "command_of", lambda *_: ["python"])
    return ran


def plant(fault: int, patch: pytest.MonkeyPatch) -> None:
    trained = 0
    forward = NestModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal trained
        trained += self.training
        if trained > fault:
            self.encoder.layers[-1].norm_out.eps = 1e-4
        return forward(self, *args, **kwargs)

    patch.setattr(NestModel, "forward", counted)


def test_a_fault_that_starts_late_is_found_and_its_step_recorded_in_full(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = in_this_process(FIRST, monkeypatch)
    words = ["--reference", str(recorded), "--candidate", str(recorded), "--out", str(tmp_path), "--steps", str(STEPS)]
    assert bisect.main(words) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bisect:")]
    assert said[0] == f"bisect: step {FIRST} is the first that differs; {FIRST} steps before it have the same bits"
    assert "norm_out, output (output); " in said[1]
    assert ran == ["hashes-reference", "hashes-candidate", "step-reference", "step-candidate"]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["verdict"] == "diverged" and f"step {FIRST}" in (tmp_path / "report" / "report.md").read_text()
    assert [path.name for path in (tmp_path / "step" / "reference").glob("step_*")] == [f"step_{FIRST}"]


def test_hashes_of_a_loop_of_ones_own_are_compared_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.record.test_levels import train

    for name, fault in (("one", None), ("two", None), ("other", 7)):
        train(tmp_path / name, fault, record="digest")
    ran = in_this_process(None, monkeypatch)
    sides = [["--reference", str(tmp_path / "one"), "--candidate", str(tmp_path / name)] for name in ("two", "other")]
    assert [bisect.main([*words, "--out", str(tmp_path / "out")]) for words in sides] == [0, 1] and not ran
    said = capsys.readouterr().out
    assert "bisect: all 12 steps have the same bits" in said and "it parts at layers.1, output" in said
    assert "bisect: record step 7 of both in full" in said
    train(tmp_path / "short", steps=5, record="digest")
    short = ["--reference", str(tmp_path / "one"), "--candidate", str(tmp_path / "short")]
    assert bisect.main([*short, "--out", str(tmp_path / "out")]) == 2
    assert "all 5 steps have the same bits" in (said := capsys.readouterr().out) and "only one side has hashes" in said


def test_who_compares_hashes_is_told_what_compares_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.record.test_levels import train

    one, other, whole = tmp_path / "one", tmp_path / "the other", tmp_path / "whole"
    for path, level in ((one, "digest"), (other, "digest"), (whole, "modules")):
        train(path, steps=2, record=level)
    out = ["--out", str(tmp_path / "report")]
    assert compare.main(["--reference", str(one), "--candidate", str(other), *out]) == 2
    assert f"nest-ssl bisect --reference {one} --candidate '{other}'" in capsys.readouterr().out
    compare.main(["--reference", str(whole), "--candidate", str(whole), *out])
    assert "bisect" not in capsys.readouterr().out


def test_what_an_earlier_search_recorded_is_not_taken_for_this_one(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--reference", str(recorded), "--candidate", str(recorded), "--out", str(tmp_path), "--steps", "1"]
    in_this_process(None, monkeypatch)
    assert bisect.main(words) == 0
    in_this_process(-1, monkeypatch)
    with pytest.raises(UserError, match="the candidate did not train: .*hashes-candidate.log"):
        bisect.main(words)
    with pytest.raises(UserError, match="would be replaced by what is made of it"):
        forget({"reference": open_recording(tmp_path / "hashes" / "reference")}, tmp_path / "hashes")
    with pytest.raises(UserError, match="one name on both sides: --names names.yaml"):
        bisect.main([*words, "--names", "names.yaml"])


def test_a_difference_that_does_not_come_again_is_no_pass(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.record.test_levels import train

    one, other = train(tmp_path / "one", record="digest")[0], train(tmp_path / "other", 1, record="digest")[0]
    monkeypatch.setattr("nest_ssl.compare.digests.compare_digests", lambda *_: compare_digests(one, other))
    in_this_process(None, monkeypatch)
    words = ["--reference", str(recorded), "--candidate", str(recorded), "--out", str(tmp_path), "--steps", "2"]
    assert bisect.main(words) == 2
    assert "bisect: step 1 has the same bits when trained again" in capsys.readouterr().out
