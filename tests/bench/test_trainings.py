"""What is run as a process, and what a page keeps of a comparison."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.bench import recorded, trainings
from nest_ssl.bench.run import faults
from nest_ssl.bench.trainings import (
    NO_TIME,
    Bench,
    Pair,
    Side,
    Slots,
    Training,
    compare,
    refuse_without_gpu,
    row_of,
    run_logged,
    train,
    train_pairs,
)
from nest_ssl.bench.workers import GIVEN_BACK, Worker, WorkerEnded
from nest_ssl.cli import explain


@pytest.fixture
def bench(tmp_path: Path, python: str) -> Bench:
    """A bench whose trainers are a script that says what it is asked, and fails where `fail=1` is."""
    script = tmp_path / "train.py"
    script.write_text("import sys, time\nprint('last words', *sys.argv[1:])\n"
                      "time.sleep(20 * ('sleep=1' in sys.argv))\nsys.exit('fail=1' in sys.argv)\n")  # fmt: skip
    side = Side(python, str(script))
    return Bench({"nemo": side, "nest": side}, "gpu", "tiny", tmp_path, slots=Slots(3))


def test_a_training_that_fails_is_said_with_its_last_line(bench: Bench) -> None:
    good, bad = Training("a", "nemo", ("size=tiny",)), Training("a", "nest", ("fail=1",))
    failed = train(bench, bad)
    assert train(bench, good) == "" and "exit code 1: last words trainer.accelerator=gpu" in failed
    assert "fail=1" in failed and f"output_dir={bench.folder / 'a' / 'nest'}" in failed
    (row,) = train_pairs(bench, [Pair("both", good, bad)], compare)
    assert row["name"] == "both" and row["error"].startswith("nest: exit code 1")


def test_a_row_is_made_as_soon_as_its_two_trainings_are_there(bench: Bench) -> None:
    """And before the next training begins: where time is over then, the first rows are whole."""
    one = Bench(bench.sides, "gpu", "tiny", bench.folder, slots=Slots(1))
    pairs = [Pair(str(i), *(Training(f"{i}", side, ()) for side in ("nemo", "nest"))) for i in range(3)]
    made: list[tuple[str, int]] = []

    def row(bench: Bench, pair: Pair, errors: list[str]) -> dict[str, Any]:
        with bench.slots.taken(bench.place, begins=False):
            made.append((pair.name, len(list(bench.folder.glob("*/*.out")))))
        return {"name": pair.name, "errors": errors}

    assert train_pairs(one, pairs, row) == [{"name": str(i), "errors": []} for i in range(3)]
    assert [name for name, _ in made] == ["0", "1", "2"] and made[0][1] <= 3 and made[1][1] <= 5


def test_the_first_part_is_served_first() -> None:
    slots, order = Slots(1), []

    def take(place: int, begins: bool) -> None:
        with slots.taken(place, begins):
            order.append((place, begins))

    with ThreadPoolExecutor(4) as pool, slots.taken(0, True):
        for number, wish in enumerate([(1, False), (0, True), (1, True), (0, False)], start=1):
            pool.submit(take, *wish)
            while len(slots._waiting) < number:
                time.sleep(0.01)
    assert order == [(0, False), (0, True), (1, False), (1, True)]


def test_what_a_process_started_ends_with_it(bench: Bench) -> None:
    """As explain's trainers do: it is asked to end, ends them, and waits until they have; it has longer than they."""
    mark = bench.folder / "ended"
    ends = f"""import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(2), pathlib.Path({str(mark)!r}).touch(), sys.exit(1)))
time.sleep(60)"""
    asked = f"""import signal, subprocess, sys, time
started = subprocess.Popen([sys.executable, "-c", {ends!r}])
signal.signal(signal.SIGTERM, lambda *_: (started.terminate(), started.wait(), sys.exit(1)))
time.sleep(60)"""
    assert trainings.GRACE > explain.GRACE
    late = Bench(bench.sides, "gpu", "tiny", bench.folder, deadline=time.monotonic() + 2)
    assert run_logged([sys.executable, "-c", asked], bench.folder / "x.out", late) == NO_TIME and mark.exists()
    assert run_logged([sys.executable, "-c", asked], bench.folder / "never.out", late) == NO_TIME
    assert not (bench.folder / "never.out").exists()


def test_time_that_is_up_ends_a_training(bench: Bench) -> None:
    slow = Training("slow", "nest", ("sleep=1",), accelerator="cpu")
    late = Bench(bench.sides, "gpu", "tiny", bench.folder, deadline=time.monotonic() + 0.5)
    started = time.monotonic()
    assert train(late, slow) == NO_TIME
    assert time.monotonic() - started < 10


def difference(rung: str, module: str, relative: float) -> dict[str, Any]:
    metrics = {"relative": relative, "differing": 7, "elements": 9, "max_abs": 2e-3}
    return {"rung": rung, "module": module, "tensor": "weight", "step": 1, "metrics": metrics}


def test_what_is_kept_of_a_report() -> None:
    differences = [difference("forward", "a", 1e-3), difference("forward", "b", 1e-2), difference("weights", "a", 1e-5)]
    rungs = [{"name": "batch", "status": "identical", "differing": 0}]
    report = {
        "verdict": "diverged", "facts": {"tensors": 10, "tensors_same": 7}, "rungs": rungs, "differences": differences,
        "reference": {"label": "NeMo"}, "candidate": {"label": "port"}, "first_bit_difference": differences[0],
        "losses": [{"step": 1, "reference": 2.0, "candidate": 2.5}],
    }  # fmt: skip
    row = row_of(report)
    assert row["largest"] == {"forward": 1e-2, "weights": 1e-5} and row["rungs"] == {"batch": ["identical", 0]}
    assert row["first"] == "step 1, forward: a weight, 7 of 9 elements, at most 2.0e-03"
    assert (row["tensors"], row["tensors_same"], row["verdict"]) == (10, 7, "diverged")
    assert row["losses"] == [[1, 2.0, 2.5]] and row["differ"] == {"a": 2, "b": 1}
    assert row_of({**report, "differences": [], "first_bit_difference": None})["first"] is None


@pytest.mark.parametrize(
    ("edit", "parted"),
    [
        (lambda ledger: None, None),
        (lambda ledger: ledger[3].update(draws=8), "draw 2: [('encoder.layers.0.dropout', 4)]"),
        (lambda ledger: ledger.pop(), "draw 2: [('encoder.layers.0.dropout', 4)] []"),
        (lambda ledger: ledger.insert(0, dict(ledger[3])), "draw 0: [('forward', 16)]"),
        (lambda ledger: ledger[0].update(draws=9), None),  # another generator's
    ],
)
def test_ledgers_are_compared_draw_by_draw(bench: Bench, edit: Callable[[Any], object], parted: str | None) -> None:
    draws = [("python", "", 1), ("torch_cuda:0", "", 16), ("torch_cuda:0", "encoder.layers.1.dropout", 4),
             ("torch_cuda:0", "encoder.layers.0.dropout", 4)]  # fmt: skip
    sides = [Training("one step", side, ()) for side in ("nemo", "nest")]
    for training in sides:
        ledger = [{"generator": g, "module": m, "phase": "forward", "draws": d} for g, m, d in draws]
        if training.side == "nest":
            edit(ledger)
        (folder := training.folder(bench) / "step_0").mkdir(parents=True)
        (folder / "rng.json").write_text(json.dumps({"ledger": ledger}))
    row = recorded.ledgers(bench, *sides)
    assert row["generator"] == "torch_cuda" and row["calls"][0] == 3
    assert row["kinds"] == {"forward": [1, 16], "dropout": [2, 8]}
    assert row["same"] is (parted is None) and (row["parted"] or "").startswith(parted or "")
    assert bool(faults("generator", [{"name": "one step", **row}])) is not row["same"]


def test_each_worker_has_a_log_of_its_own(bench: Bench, tmp_path: Path) -> None:
    for record in (None, tmp_path / "recording"):
        with Worker(bench, "nest", "x=1", record=record) as worker, pytest.raises(WorkerEnded):
            worker.ask(do="ready")  # the script in its place is no trainer
    logs = {log.name: log.read_text() for log in bench.folder.glob("worker-*.log")}
    assert set(logs) == {"worker-nest-x=1.log", "worker-nest-x=1-recorder.log"} and all(logs.values())


@pytest.mark.parametrize(("signal", "said"), [("KILL", "killed from outside"), ("SEGV", "ended by SIGSEGV")])
def test_a_worker_that_is_killed_is_not_explained_by_its_log(
    bench: Bench, tmp_path: Path, signal: str, said: str
) -> None:
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\necho 'a warning' >&2\nread order\nkill -{signal} $$\n")
    stub.chmod(0o755)
    killed = Bench({"nest": Side(str(stub), "train.py")}, "cpu", "tiny", tmp_path)
    with Worker(killed, "nest") as worker, pytest.raises(WorkerEnded, match=f"^nest: {said}"):
        worker.ask(do="ready")


# In a trainer's place: says whether what it frees is kept for the process, and ends.
ALLOCATES = """
from pathlib import Path
from nest_ssl.base.errors import UserError
from nest_ssl.run.subject import Subject
def megabytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024
def load(cfg=None):
    before = megabytes()
    b"x" * (1 << 26)
    raise UserError("memory is", "kept" if megabytes() > before + 32 else "given back", "")
PORT = Subject(name="nest", package="nest-ssl", load=load, build_model=load)
"""
SET = "MALLOC_TRIM_THRESHOLD_"


@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
@pytest.mark.parametrize(
    ("switches", "variables", "said"),
    [
        ((), {}, "memory is: kept"),
        ((GIVEN_BACK,), {}, "memory is: given back"),
        ((GIVEN_BACK,), {SET: "131072"}, "memory is: given back"),
        ((), {SET: "131072"}, f"the allocator is not as the page says: .* Unset {SET}"),
    ],
)
def test_a_worker_keeps_memory_or_gives_it_back_as_the_page_says(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    switches: tuple[str, ...], variables: dict[str, str], said: str,
) -> None:  # fmt: skip
    """Measured inside, behind all that a worker does before it loads its trainer."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (script := tmp_path / "allocates.py").write_text(ALLOCATES)
    place = Bench({"nest": Side(bench.sides["nest"].python, str(script))}, "cpu", "tiny", tmp_path)
    with Worker(place, "nest", *switches) as worker, pytest.raises(WorkerEnded, match=f"^nest: error: {said}"):
        worker.ask(do="ready")


def test_without_a_gpu_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refuse_without_gpu("cpu")
    with pytest.raises(UserError, match="no GPU that torch can use"):
        refuse_without_gpu("gpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    refuse_without_gpu("gpu")
