"""Ranks are started, watched and put together: here by programs that train nothing, so that a start costs nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from train_nest import NEST

from nest_ssl.base.errors import UserError
from nest_ssl.recording.ranks import read_ranks
from nest_ssl.run import ranks as module
from nest_ssl.run.ranks import Rank, Together, launch, of_torchrun, own_rank, processes

# What a rank does: an index as a recording has it, or what `FAULT` says on rank 1.
RANK = """
import json, os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["LOCAL_RANK"]), Path(os.environ["NEST_SSL_RANKS"])
print("rank", rank, "of", os.environ["WORLD_SIZE"], *sys.argv[1:], flush=True)
fault = sys.argv[1] if rank == 1 else sys.argv[2]
if fault == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if fault in ("mistake", "crash"):
    report = {"error": ["no such file", "a.json", "Look."]} if fault == "mistake" else {"traceback": ["ValueError: x"]}
    (folder / f"failure_{rank}.txt").write_text(json.dumps(report))
    sys.exit(3 if fault == "mistake" else 70)
if fault == "silent":
    sys.exit("bad luck")
if fault in ("stalls", "mute"):
    if fault == "stalls":
        said = f"rank {rank}: step 2, forward for 3 s, last module encoder.layers.1\\n"
        (folder / f"stall_{rank}.txt").write_text(said)
    time.sleep(60)
if fault == "waits":
    (folder.parent / f"waits_{rank}").touch()
    time.sleep(60)
own = folder / f"rank_{rank}"
own.mkdir()
own.joinpath("recording.json").write_text("{}")
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`start("killed", "waits")`: two ranks, of which rank 1 does the first and rank 0 the second."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train_nest.py").write_text(RANK)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "GRACE_S", 0.3)
    cfg = OmegaConf.create(
        {"output_dir": str(tmp_path / "out" / "run"), "overwrite": True, "trainer": {"stall_timeout": 3}}
    )
    (tmp_path / "out").mkdir()
    return lambda *faults: launch(NEST, cfg, faults, 2)


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("waits"))


def test_all_ranks_are_one_recording(
    start: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start("", "") == 0
    assert sorted(path.name for path in (tmp_path / "out/run").iterdir()) == ["rank_0", "rank_1", "ranks.json"]
    said = capfd.readouterr().out
    assert "rank 0 of 2" in said and "rank 1 of 2" not in said and "2 ranks recorded in" in said


@pytest.mark.parametrize(
    ("faults", "error", "line"),
    [
        (("killed", "waits"), UserError, "rank 1 of 2 was killed: SIGKILL; its log is .*run.rank_1.log"),
        (("killed", "crash"), UserError, "rank 1 of 2 was killed"),  # the crash is its connection that broke
        (("waits", "killed"), UserError, "rank 0 of 2 was killed"),
        (("mistake", "waits"), UserError, "^rank 1 of 2: no such file: a.json. Look."),
        (("mistake", "crash"), UserError, "^rank 1 of 2: no such file"),
        (("mistake", "mistake"), UserError, "^no such file: a.json. Look."),
        (("crash", "waits"), RuntimeError, "rank 1 of 2: ValueError: x"),
        (("silent", "waits"), UserError | RuntimeError, "rank 1 of 2 ended with exit code 1(.|\n)*bad luck"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_rank_that_fails_is_named_and_ends_the_others(
    start: Callable[..., int], tmp_path: Path, faults: tuple[str, str], error: type[Exception], line: str
) -> None:
    kinds = (UserError, RuntimeError) if faults[0] == "silent" else error
    began = time.monotonic()
    with pytest.raises(kinds, match=line):
        start(*faults)
    assert left(tmp_path) == [] and time.monotonic() - began < 30


@pytest.mark.parametrize("other", ["stalls", "mute"])
def test_a_step_that_stalls(
    start: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    other: str,
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.3)
    with pytest.raises(UserError, match=r"a step stalled: no rank came further within trainer.stall_timeout=3 seconds"):
        start("stalls", other)
    said = capsys.readouterr().err
    assert "rank 1: step 2, forward for 3 s, last module encoder.layers.1\n" in said
    assert ("rank 0: step 2" if other == "stalls" else "rank 0: no answer") in said
    assert left(tmp_path) == []


def test_an_earlier_recording_stays_when_a_rank_fails(start: Callable[..., int], tmp_path: Path) -> None:
    start("", "")
    before = (tmp_path / "out/run/ranks.json").read_text()
    with pytest.raises(UserError, match="rank 1"):
        start("killed", "")
    assert left(tmp_path) == ["run"] and (tmp_path / "out/run/ranks.json").read_text() == before


def test_a_signal_ends_all_ranks(start: Callable[..., int], tmp_path: Path) -> None:
    def stop() -> None:
        while not all((tmp_path / "out" / f"waits_{rank}").exists() for rank in (0, 1)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert start("waits", "waits") == 128 + signal.SIGTERM
    stopper.join()
    assert left(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_goes_wrong_in_a_rank_is_left_for_the_one_that_started_it(tmp_path: Path) -> None:
    rank = Rank(1, 2, tmp_path)

    def mistake() -> int:
        raise UserError("what", "where", "Fix.")

    assert (rank.reporting(lambda: 0), rank.reporting(mistake)) == (0, 3)
    assert json.loads((tmp_path / "failure_1.txt").read_text()) == {"error": ["what", "where", "Fix."]}
    assert rank.reporting(lambda: 1 // 0) == 70
    assert "ZeroDivisionError" in (tmp_path / "failure_1.txt").read_text()


def test_which_rank_this_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("NEST_SSL_RANKS", str(tmp_path))
    rank = own_rank()
    assert rank == Rank(1, 2, tmp_path)
    assert (rank.target, rank.place("a/b"), rank.log("a/b")) == (
        tmp_path / "rank_1", Path("a/b/rank_1"), Path("a/b.rank_1.log"),
    )  # fmt: skip
    assert of_torchrun(OmegaConf.create({"trainer": {"devices": 3}})) is None


@pytest.mark.parametrize(
    ("environment", "devices", "found"),
    [
        ({}, 2, None),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, 1, None),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 1, 2),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 2, 2),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            3,
            "torchrun started 2 processes: trainer.devices=3. Give trainer",
        ),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            1,
            "several nodes is not offered: WORLD_SIZE=4, .*nproc-per-node alone",
        ),
        ({"WORLD_SIZE": "2"}, 1, "another launcher than torchrun: WORLD_SIZE=2. Start one process: trainer.devices=N"),
    ],
)
def test_started_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: int, found: int | str | None
) -> None:
    for name, value in {"LOCAL_RANK": "0", **environment}.items() if environment else ():
        monkeypatch.setenv(name, value)
    cfg = OmegaConf.create({"trainer": {"devices": devices}})
    with pytest.raises(UserError, match=found) if isinstance(found, str) else nullcontext():
        assert of_torchrun(cfg) == found


@pytest.mark.parametrize(
    ("devices", "number"), [(1, 1), ("2", 2), ([0, 1], 2), ("0,1,", 2), (-1, 3), ("auto", 3), (None, 3)]
)
def test_how_many_processes(monkeypatch: pytest.MonkeyPatch, devices: object, number: int) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert processes(OmegaConf.create({"trainer": {"devices": devices}})) == number


@pytest.mark.parametrize("devices", [0, "two", -2])
def test_no_number_of_processes(devices: object) -> None:
    with pytest.raises(UserError, match="not a number of devices: trainer.devices="):
        processes(OmegaConf.create({"trainer": {"devices": devices}}))


@pytest.mark.parametrize(("batches", "refused"), [([3, 3], False), ([3, 2], True)])
def test_ranks_with_other_numbers_of_batches_do_not_start(
    monkeypatch: pytest.MonkeyPatch, batches: list[int], refused: bool
) -> None:
    """One that has more would wait without end for the others."""

    def gather(found: list[int], own: int) -> None:
        assert own == batches[0]
        found[:] = batches

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    trainer = SimpleNamespace(num_training_batches=batches[0], world_size=2)
    with pytest.raises(UserError, match="batches: rank 0: 3, rank 1: 2") if refused else nullcontext():
        Together().on_train_start(trainer, None)  # type: ignore[arg-type]


def test_a_recording_of_ranks_is_read_back(start: Callable[..., int], tmp_path: Path) -> None:
    start("", "")
    with pytest.raises(UserError, match="rank_0"):  # these ranks recorded nothing
        read_ranks(tmp_path / "out/run")
