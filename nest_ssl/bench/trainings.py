"""Recorded trainings as processes, many at once, and their comparisons."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import Condition
from typing import Any, Protocol, TypeVar

from nest_ssl.base.errors import UserError
from nest_ssl.base.home import ROOT

THREADS = 32  # that wait for a slot
NO_TIME = "no time was left"
# Seconds that a process has to end what it started, when its time is over: more than explain gives its trainers.
GRACE = 40
PLANTED = ["-m", "nest_ssl.selftest.planted"]
NO_WORKERS = ("model.train_ds.num_workers=0", "model.validation_ds.num_workers=0")


@dataclass(frozen=True)
class Side:
    """How a trainer is started: the Python of its environment, and its script."""

    python: str
    script: str


class Slots:
    """Places for so many processes. The first part goes first, and in it what completes a row before another training:
    when time is over some rows are whole, and not all rows half."""

    def __init__(self, number: int) -> None:
        self._free, self._changed, self._asked = number, Condition(), count()
        self._waiting: set[tuple[int, bool, int]] = set()

    @contextmanager
    def taken(self, place: int, begins: bool) -> Iterator[None]:
        """A place, when it is free and none that waits comes first.

        Args:
            place: of the part among all.
            begins: whether more has to follow before there is a row.
        """
        own = place, begins, next(self._asked)
        with self._changed:
            self._waiting.add(own)
            self._changed.wait_for(lambda: self._free > 0 and own == min(self._waiting))
            self._waiting.remove(own)
            self._free -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()


@dataclass(frozen=True)
class Bench:
    """What every part is given.

    Args:
        sides: `nemo` and `nest`.
        accelerator: Lightning's name of the device, ``gpu`` or ``cpu``.
        size: of the model in the parts that name no other.
        folder: for recordings and logs.
        batches: (utterances, seconds of each) that are timed; the first is also looked into.
        slots: a place for each training that may run; large ones want some 6 GB of memory and 5 GB of the card's.
        deadline: when everything ends, on `time.monotonic`'s clock.
        place: of the part that is given this among all: the first is served first.
        quick: whether every part only shows that it runs: fewer steps, fewer times.
    """

    sides: Mapping[str, Side]
    accelerator: str
    size: str
    folder: Path
    batches: tuple[tuple[int, float], ...] = ((8, 16.0), (32, 16.0))
    slots: Slots = field(default_factory=lambda: Slots(2))
    deadline: float = float("inf")
    place: int = 0
    quick: bool = False

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    @property
    def words(self) -> str:
        """What its command says of it."""
        return (" --device cpu" if self.accelerator == "cpu" else "") + (" --quick" if self.quick else "")


@dataclass(frozen=True)
class Training:
    """One recorded training; its recording lies in a folder of its name and side."""

    name: str
    side: str
    overrides: tuple[str, ...]
    accelerator: str = ""  # another device than the bench's
    planted: str = ""  # a case of the self-test's catalogue that the port is trained with

    def folder(self, bench: Bench) -> Path:
        return bench.folder / slug(self.name) / self.side


def slug(name: str) -> str:
    """A name for a folder."""
    return name.replace(",", "").replace(" ", "-")


class Compared(Protocol):
    """Two trainings of which a row says something."""

    @property
    def reference(self) -> Training: ...

    @property
    def candidate(self) -> Training: ...


P = TypeVar("P", bound=Compared)
Work = Callable[[Bench, P, list[str]], dict[str, Any]]


def train_pairs(bench: Bench, pairs: Sequence[P], work: Work[P]) -> list[dict[str, Any]]:
    """Train both sides of each, all side by side, and have its row made as soon as both are there.

    Args:
        work: makes the row, given the pair and what went wrong with its trainings.
    """
    with ThreadPoolExecutor(THREADS) as trainers, ThreadPoolExecutor(THREADS) as others:
        wanted = dict.fromkeys(one for pair in pairs for one in (pair.reference, pair.candidate))
        ended = {one: trainers.submit(train, bench, one) for one in wanted}

        def row(pair: P) -> dict[str, Any]:
            sides = [(one.side, ended[one].result()) for one in (pair.reference, pair.candidate)]
            return work(bench, pair, [f"{side}: {error}" for side, error in sides if error])

        return list(others.map(row, pairs))


def train(bench: Bench, training: Training) -> str:
    """Run it; returns what went wrong, nothing where nothing did."""
    folder, side = training.folder(bench), bench.sides[training.side]
    device = f"trainer.accelerator={training.accelerator or bench.accelerator}"
    interpreter = [side.python, *([*PLANTED, training.planted] if training.planted else [])]
    command = [*interpreter, str(ROOT / side.script), device, f"output_dir={folder}", "overwrite=true"]
    with bench.slots.taken(bench.place, begins=True):
        return run_logged([*command, *training.overrides], folder.with_name(f"{training.side}.out"), bench)


def run_logged(command: Sequence[str], log: Path, bench: Bench, passes: tuple[int, ...] = (0,)) -> str:
    """Run a command with its output in `log`; its last line if it ends with another code than it may."""
    if not bench.seconds_left:
        return NO_TIME
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            code = process.wait(min(bench.seconds_left, 10**6))
        except subprocess.TimeoutExpired:
            process.terminate()  # and not killed: what it started would go on beside what is measured next
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return NO_TIME
        finally:
            process.kill()
    if code in passes:
        return ""
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return f"exit code {code}: {lines[-1][:300]}"


def python_path() -> str:
    """This package first, then what was there: a trainer's environment may have no copy of it."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


@dataclass(frozen=True)
class Pair:
    """Two recordings to compare."""

    name: str
    reference: Training
    candidate: Training


def compare(bench: Bench, pair: Pair, errors: list[str]) -> dict[str, Any]:
    """The row of a pair whose trainings have ended, with these errors: see `row_of`; or what went wrong, as `error`."""
    sides = (pair.reference, pair.candidate)
    out = bench.folder / "reports" / slug(pair.name)
    if not errors:
        folders = ["--reference", str(sides[0].folder(bench)), "--candidate", str(sides[1].folder(bench))]
        command = [bench.sides["nest"].python, str(ROOT / "scripts" / "compare_outputs.py"), *folders]
        with bench.slots.taken(bench.place, begins=False):
            errors = [run_logged([*command, "--out", str(out)], out.with_suffix(".out"), bench, passes=(0, 1, 2, 4))]
    settings = " ".join(o for o in pair.candidate.overrides if o not in NO_WORKERS)
    settings = settings.replace(str(bench.folder), "WORK")
    row = {"name": pair.name, "settings": settings}
    if any(errors):
        return {**row, "error": "; ".join(filter(None, errors))}
    return {**row, **row_of(json.loads((out / "report.json").read_text(encoding="utf-8")))}


def row_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a page says of a comparison, from its `report.json`.

    Keys: `reference` and `candidate` (labels), `verdict`, `tensors`, `tensors_same`, `losses` (of both, by step),
    `rungs` (status and count of differing values by rung), `largest` (the largest relative difference by rung),
    `first` (where the first difference is, in one line, or None) and `differ` (what differs most often).
    """
    largest: dict[str, float] = {}
    for difference in report["differences"]:
        relative = (difference.get("metrics") or {}).get("relative")
        if relative is not None:
            largest[difference["rung"]] = max(largest.get(difference["rung"], 0.0), relative)
    return {
        "reference": report["reference"]["label"],
        "candidate": report["candidate"]["label"],
        "verdict": report["verdict"],
        "tensors": report["facts"]["tensors"],
        "tensors_same": report["facts"]["tensors_same"],
        "losses": [[step["step"], step["reference"], step["candidate"]] for step in report["losses"]],
        "rungs": {rung["name"]: [rung["status"], rung["differing"]] for rung in report["rungs"]},
        "largest": largest,
        "first": _first(report),
        "differ": dict(
            Counter(d["module"] or d["tensor"] for d in report["differences"] if d["metrics"]).most_common(5)
        ),
    }


def _first(report: Mapping[str, Any]) -> str | None:
    first = report["first_bit_difference"]
    if first is None:
        return None
    place = " ".join(str(part) for part in (first["module"], first["tensor"]) if part)
    size = first["metrics"] or {}
    much = f", {size['differing']:,} of {size['elements']:,} elements, at most {size['max_abs']:.1e}" if size else ""
    return f"step {first['step']}, {first['rung']}: {place}{much}"


def machine(run: Mapping[str, Any]) -> dict[str, Any]:
    """Card, driver and versions, from `record.provenance.describe_run`."""
    cuda, packages = run["cuda"], run["packages"]
    commit = run["git"]["commit"] if run.get("git") else None
    return {
        "card": (cuda["gpus"] or [run["host"]["processor"]])[0],
        "driver": cuda["driver"],
        "cuda": cuda["runtime"],
        "cudnn": cuda["cudnn"],
        "torch": packages["torch"],
        "numpy": packages["numpy"],
        "python": run["python"],
        "cores": run["host"]["cores"],
        "commit": commit,
    }


def refuse_without_gpu(accelerator: str) -> None:
    """Raises UserError where a GPU is asked for and torch sees none."""
    import torch

    if accelerator == "gpu" and not torch.cuda.is_available():
        fix = "Run it where nvidia-smi lists a card and torch is a build with CUDA; docs/gpu.md has what was measured."
        raise UserError("no GPU that torch can use", f"torch {torch.__version__}", fix)
