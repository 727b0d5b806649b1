"""`nest-ssl explain`: which commands gather what, what is made of what they wrote, and what cannot be had is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from train_nest import NEST

from nest_ssl.base.errors import InterruptedRun, UserError
from nest_ssl.cli.explain import JobRunner, main
from nest_ssl.cli.train import train
from nest_ssl.recording.evidence import (
    Gathered,
    Gathering,
    NoiseFloor,
    Observer,
    Operators,
    Replay,
    Schedule,
    read_evidence,
    seal_of,
)
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run.evidence import COSTS, KINDS, Job, kinds_to_gather, plan
from tests.compare.builder import edit_config, edit_index, edit_tensors
from tests.test_planted_faults import STARTS

Explain = Callable[..., int]
SMALL = ["model.encoder.subsampling_conv_channels=4", "model.encoder.d_model=16", "model.train_ds.batch_size=2",
         "model.masking.mask_prob=0.05", *STARTS]  # fmt: skip
TINY = ["size=tiny", "batches=3", *SMALL, "save_steps=0,1"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recordings of the port, of which the second was trained with another epsilon; the third batch is not kept."""
    folder = tmp_path_factory.mktemp("pair")
    reference = [*TINY, f"output_dir={folder / 'nemo'}"]
    assert train(NEST, [*reference, "--then", *TINY, "model.optim.eps=1e-6", f"output_dir={folder / 'nest'}"]) == 0
    return folder


@pytest.fixture
def copied(pair: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair, tmp_path / "pair"))


def opened(folder: Path) -> tuple[Recording, Recording]:
    return open_recording(folder / "nemo"), open_recording(folder / "nest")


@pytest.fixture
def explain(python: str) -> Explain:
    """`explain(folder, *options)`: the command's exit code."""

    def call(folder: Path, *options: str) -> int:
        sides = ["--reference", str(folder / "nemo"), "--candidate", str(folder / "nest")]
        pythons = [f"--reference-python={python}", f"--candidate-python={python}"]
        return main([*sides, *pythons, "--out", str(folder / "report"), *options])

    return call


def gathered(folder: Path) -> dict[str, Gathering]:
    return {kind.kind: kind for kind in read_evidence(folder / "evidence" / "gathered.json", Gathered).kinds}


# --- which commands


def test_runs_of_one_trainer_share_a_process(pair: Path) -> None:
    jobs = plan(*opened(pair), pair / "evidence", ["replay", "float64", "floor", "observer"])
    shown = {job.log: (job.side, job.what, job.words[:1], job.words.count("--then")) for job in jobs}
    assert shown == {
        "explain-reference": ("reference", "float64, noise floor, without a recorder", ["scripts/train_nest.py"], 2),
        "explain-candidate": ("candidate", "float64, without a recorder", ["scripts/train_nest.py"], 1),
        "explain-replay": ("candidate", "replay", ["-m"], 0),
        "explain-replay-float64": ("candidate", "replay", ["-m"], 0),
    }
    needed = {path.parent.relative_to(pair).as_posix() for path in jobs[-1].needs}
    assert needed == {"evidence/float64/nemo", "evidence/float64/nest"}
    words = next(job.words for job in jobs if job.log == "explain-reference")
    assert ["--config-path", str(pair / "nemo"), "--config-name", "config"] == words[1:5]
    for run in " ".join(words).split(" --then "):
        assert "overwrite=true exp_manager=null trainer.logger=false stop_when_recorded=true" in run
        assert run.endswith("trainer.stall_timeout=null")  # repeats of a step take longer than a step
    assert f"output_dir={pair / 'evidence' / 'floor'} noise_floor=8" in " ".join(words)
    assert f"output_dir={pair / 'evidence' / 'float64' / 'nemo'} trainer.precision=64-true" in " ".join(words)


def test_by_default_a_small_model_is_also_trained_without_a_recorder(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kinds_to_gather("", *opened(pair)) == list(KINDS)
    monkeypatch.setattr("nest_ssl.run.evidence.SMALL", 1000)
    assert "observer" not in kinds_to_gather("", *opened(pair))
    assert kinds_to_gather(" observer, floor", *opened(pair)) == ["floor", "observer"]
    with pytest.raises(UserError, match=r"no such evidence: flor. Did you mean floor\?"):
        kinds_to_gather("flor", *opened(pair))


@pytest.mark.parametrize(
    ("field", "value", "lost", "why"),
    [
        ("generation", {"name": "2.7"}, {"float64"}, "NeMo 2.7 does not train in float64"),
        (
            "resumed_from",
            {"checkpoint": "a.ckpt", "batches": 1, "steps": 1},
            {*KINDS} - {"replay"},
            "from a checkpoint",
        ),
        (
            "trainer",
            {"name": "a", "package": "a", "version": "", "class": "A"},
            {*KINDS} - {"replay"},
            "a loop of its own",
        ),
    ],
)
def test_what_cannot_be_had_is_said_with_what_it_costs(
    copied: Path, explain: Explain, capsys: pytest.CaptureFixture[str], field: str, value: Any, lost: set[str], why: str
) -> None:
    edit_index(copied / "nemo", lambda index: index.update({field: value}))
    jobs = plan(*opened(copied), copied / "evidence", KINDS)
    assert {"float64"} <= lost and not any("float64" in job.what or "float64" in job.log for job in jobs)
    explain(copied, "--collect", "--evidence", ",".join(lost))
    said = capsys.readouterr().out
    for kind in lost:
        assert why in gathered(copied)[kind].why and gathered(copied)[kind].costs == COSTS[kind]
        assert f"explain: no {kind}: {gathered(copied)[kind].why}; {COSTS[kind]}" in said


def test_the_time_that_is_left_follows_the_pace(tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Job(f"{n}", side, "", [], s) for n, (side, s) in enumerate(
        [("reference", 10.0), ("candidate", 4.0), ("candidate", 2.0), ("candidate", 5.0)])]  # fmt: skip
    for workers, left in ((2, [11.0, 2 * 10.0]), (1, [21.0, 2 * 17.0])):
        gathering = JobRunner(jobs, {}, tmp_path, opened(pair)[0].index)
        monkeypatch.setattr(gathering, "_workers", workers)
        assert gathering.seconds_left() == left[0]
        gathering._took["1"] = 8.0  # twice as long as was expected
        assert gathering.seconds_left() == left[1]


def test_one_run_of_the_reference_is_repeated_and_traced(pair: Path) -> None:
    jobs = plan(*opened(pair), pair / "evidence", ["floor", "operators", "schedule"])
    settings = ("noise_floor=", "operators=", "learning_rates=")
    words = {job.side: [word for word in job.words if word.startswith((*settings, "record="))] for job in jobs}
    assert words == {
        "reference": ["noise_floor=8", "operators=true", "learning_rates=100000"],
        "candidate": ["record=operators", "operators=true", "learning_rates=100000"],  # no tensor is written for that
    }
    assert "save_steps=0" in next(job.words for job in jobs if job.side == "candidate")
    alone = plan(*opened(pair), pair / "evidence", ["schedule"])
    assert [(job.side, job.what) for job in alone] == [("reference", "schedule"), ("candidate", "schedule")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--names=names.yaml"], "no such file or folder: names.yaml"),
        (["--known=known.yaml"], "no such file or folder: known.yaml"),
        (["--rtol=x"], "bad usage: .*--rtol"),
        (["--misspelt"], "bad usage: .*--misspelt"),
        (["--steps=7"], "a step that neither recording has"),
        (["--evidence=flor"], "no such evidence: flor"),
        (["--candidate-python='python"], "not the words of a command: --candidate-python 'python: No closing"),
        (["--reference-python=nowhere/python -u"], "no Python for this: nowhere/python. Run make setup"),
    ],
)
def test_whatever_is_wrong_is_said_before_anything_runs_or_is_removed(
    pair: Path, explain: Explain, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    for name in ("prepare", "collect"):
        monkeypatch.setattr(f"nest_ssl.run.evidence.{name}", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match=message):
        explain(pair, *options)


def test_two_recordings_of_one_name_have_places_of_their_own(pair: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pair / "nest", tmp_path / "nemo"))
    jobs = plan(open_recording(pair / "nemo"), open_recording(other), tmp_path / "evidence", ["replay", "float64"])
    runs = {job.side: job.words for job in jobs if job.log in ("explain-reference", "explain-candidate")}
    for side, words in runs.items():
        assert f"output_dir={tmp_path / 'evidence' / 'float64' / side}" in words
    replay = next(job.words for job in jobs if job.log == "explain-replay-float64")
    assert [replay[replay.index(f"--{side}") + 1] for side in runs] == [
        str(tmp_path / "evidence" / "float64" / side) for side in runs
    ]


# --- stopped


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT raises here, which a shell's background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, InterruptedRun)], ids=["INT", "TERM"]
)
def test_a_signal_stops_what_runs_and_starts_nothing_more(
    copied: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]
) -> None:
    """The first job of one side is done, and what it wrote is taken; the other side's is in the midst."""
    began, never = copied / "began", copied / "never"
    lasting = f"import os, time; open({str(began)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    written = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    recordings = opened(copied)
    found = Replay(reference=seal_of(recordings[0].index), precision="float32", units=[])
    jobs = [
        Job("done", "candidate", "", ["-c", written, str(copied / "evidence/replay.json"), dumped(found)], 0.1),
        Job("lasting", "reference", "", ["-c", lasting], 60.0),
        Job("next", "reference", "", ["-c", f"open({str(never)!r}, 'w')"], 0.1),
        Job("later", "candidate", "", ["-c", f"open({str(never)!r}, 'w')"], 0.1, (copied / "later",)),
    ]
    monkeypatch.setattr("nest_ssl.run.evidence.plan", lambda *_: jobs)
    monkeypatch.setattr("nest_ssl.cli.explain.has_room", lambda *_: True)
    threading.Thread(target=lambda: (wait_for(began), os.kill(os.getpid(), number))).start()
    before = signal.getsignal(signal.SIGTERM)
    sides = [f"--{side}={copied / name}" for side, name in (("reference", "nemo"), ("candidate", "nest"))]
    pythons = [f"--{side}-python={sys.executable}" for side in ("reference", "candidate")]
    with pytest.raises(error):
        main([*sides, *pythons, f"--out={copied / 'report'}", "--evidence=replay,floor"])
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)
    assert not never.exists() and signal.getsignal(signal.SIGTERM) is before
    assert {name: (kind.had, kind.why) for name, kind in gathered(copied).items()} == {
        "replay": (True, ""), "floor": (False, "it was interrupted")
    }  # fmt: skip


def dumped(found: Replay) -> str:
    return found.model_dump_json(by_alias=True)


def wait_for(path: Path) -> None:
    """Until it has content, and the other lane has had its time."""
    while not (path.is_file() and path.read_text()):
        time.sleep(0.02)
    time.sleep(0.5)


# --- what is made of it


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
