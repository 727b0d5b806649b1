"""Recorded trainings as processes, many at once, and their comparisons."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.base.home import ROOT

THREADS = 32  # that wait for a slot
PLANTED = ["-m", "nest_ssl.selftest.planted"]
NO_WORKERS = ("model.train_ds.num_workers=0", "model.validation_ds.num_workers=0")


@dataclass(frozen=True)
class Side:
    """How a trainer is started: the Python of its environment, and its script."""

    python: str
    script: str


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
    """

    sides: Mapping[str, Side]
    accelerator: str
    size: str
    folder: Path
    batches: tuple[tuple[int, float], ...] = ((8, 16.0), (32, 16.0))
    slots: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(2))
    deadline: float = float("inf")

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


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


def train_all(bench: Bench, trainings: Iterable[Training]) -> dict[Training, str]:
    """Run them side by side; what went wrong by training, empty where nothing did."""
    wanted = list(dict.fromkeys(trainings))
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(wanted, pool.map(lambda one: _train(bench, one), wanted), strict=True))


def _train(bench: Bench, training: Training) -> str:
    folder, side = training.folder(bench), bench.sides[training.side]
    device = f"trainer.accelerator={training.accelerator or bench.accelerator}"
    interpreter = [side.python, *([*PLANTED, training.planted] if training.planted else [])]
    command = [*interpreter, str(ROOT / side.script), device, f"output_dir={folder}", "overwrite=true"]
    with bench.slots:
        return run_logged([*command, *training.overrides], folder.with_name(f"{training.side}.out"), bench)


def run_logged(command: Sequence[str], log: Path, bench: Bench, passes: tuple[int, ...] = (0,)) -> str:
    """Run a command with its output in `log`; its last line if it ends with another code than it may."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        try:
            environment = {**os.environ, "PYTHONPATH": python_path()}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, timeout=bench.seconds_left
            )
        except subprocess.TimeoutExpired:
            return "no time was left"
    if done.returncode in passes:
        return ""
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return f"exit code {done.returncode}: {lines[-1][:300]}"


def python_path() -> str:
    """This package first, then what was there: a trainer's environment may have no copy of it."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


@dataclass(frozen=True)
class Pair:
    """Two recordings to compare."""

    name: str
    reference: Training
    candidate: Training


def compare_all(bench: Bench, pairs: Sequence[Pair], failed: Mapping[Training, str]) -> list[dict[str, Any]]:
    """A row for each pair: see `row_of`; or what went wrong, as `error`."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda pair: _compare(bench, pair, failed), pairs))


def _compare(bench: Bench, pair: Pair, failed: Mapping[Training, str]) -> dict[str, Any]:
    sides = (pair.reference, pair.candidate)
    errors = [f"{training.side}: {failed[training]}" for training in sides if failed.get(training)]
    out = bench.folder / "reports" / slug(pair.name)
    if not errors:
        folders = ["--reference", str(sides[0].folder(bench)), "--candidate", str(sides[1].folder(bench))]
        command = [bench.sides["nest"].python, str(ROOT / "scripts" / "compare_outputs.py"), *folders]
        with bench.slots:
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
