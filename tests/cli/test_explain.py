"""`nest-ssl explain`: which commands gather what, what is refused, and what a signal leaves."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.base.errors import InterruptedRun, UserError
from nest_ssl.cli.explain import JobRunner, main
from nest_ssl.recording.evidence import (
    Replay,
    seal_of,
)
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.evidence import COSTS, KINDS, Job, kinds_to_gather, plan
from tests.cli.explained_pair import Explain, gathered, opened
from tests.compare.builder import edit_index

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
