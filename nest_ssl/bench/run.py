"""The parts one after another, and their results written as they come."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

from nest_ssl.base.files import write_atomically
from nest_ssl.bench import explained, measured, recorded
from nest_ssl.bench.document import page
from nest_ssl.bench.results import Machine, Part, foreign_results, load_results
from nest_ssl.bench.trainings import Bench, machine
from nest_ssl.record.provenance import describe_run
from nest_ssl.report.render.markdown import render_markdown

Rows = list[dict[str, Any]]
RECORDED: dict[str, Callable[[Bench], Rows]] = {
    "parity": recorded.parity,
    "generator": recorded.generator,
    "resume": recorded.resume,
    "cpu-gpu": recorded.cpu_gpu,
    "explain": explained.explain,
}
MEASURED: dict[str, Callable[[Bench, measured.Workers], Rows]] = {
    "repeat": measured.repeat,
    "sync": measured.sync,
    "speed": measured.speed,
    "recorder": measured.recorder,
}
MAY_DIFFER = ("cpu-gpu", "explain", "repeat")


def run_parts(bench: Bench, parts: Sequence[str], file: Path, document: Path) -> int:
    """Run `parts`, the recorded ones side by side, then the measured ones alone; returns the exit code.

    Args:
        file: results of earlier runs, to which these are added.
        document: the page that is written of them all.

    Raises:
        UserError: the file holds something else, or rows that cannot be shown; nothing was run.
    """
    results = load_results(file)
    try:
        page(results)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise foreign_results(file) from error
    where = Machine(**machine(describe_run()))
    print(f"gpu: {where.card}, driver {where.driver}, torch {where.torch}, cuDNN {where.cudnn}", flush=True)
    failed = []

    def keep(name: str, rows: Rows, seconds: float) -> None:
        command = f'make test-gpu ARGS="--parts {name}"'
        results.parts[name] = Part(
            machine=where, day=str(date.today()), seconds=round(seconds, 1), command=command, rows=rows
        )
        results.save(file)
        write_atomically(document, render_markdown(page(results)))
        wrong = faults(name, rows)
        failed.extend(wrong)
        print(
            f"gpu: {name}: {len(rows)} rows in {seconds:.0f} s" + "".join(f"\n  {line}" for line in wrong), flush=True
        )

    def timed(part: Callable[..., Rows], *arguments: Any) -> tuple[Rows, float]:
        started = time.perf_counter()
        return part(bench, *arguments), time.perf_counter() - started

    with ThreadPoolExecutor(len(RECORDED)) as pool:
        running = {pool.submit(timed, RECORDED[name]): name for name in RECORDED if name in parts}
        for done in as_completed(running):
            keep(running[done], *done.result())
            for recording in bench.folder.glob(f"{running[done]}*/*/"):  # gigabytes; the logs stay
                shutil.rmtree(recording, ignore_errors=True)
    with measured.Workers(bench) as workers:
        for name in [name for name in MEASURED if name in parts]:
            keep(name, *timed(MEASURED[name], workers))
    return bool(failed)


def faults(name: str, rows: Rows) -> list[str]:
    """What of a part is not as it must be, a line each: what could not be had, and what differs that must not."""
    wrong = []
    for row in rows:
        if "error" in row:
            wrong.append(f"{row['name']}: {row['error']}")
        elif name == "explain" and (row["verdict"], row["born"]) != (row["expected"], row["planted_in"]):
            places = f"{', '.join(row['born']) or 'nothing'} in place of {', '.join(row['planted_in']) or 'nothing'}"
            wrong.append(f"{row['name']}: {row['verdict']}, born {places}")
        elif name not in MAY_DIFFER and (
            row.get("verdict", "identical") != "identical" or not row.get("same", True) or row.get("differing")
        ):
            found = row.get("first") or row.get("parted") or row.get("verdict")
            wrong.append(f"{row['name']}: differs ({found})")
        elif row.get("replayed") == 0:
            wrong.append(f"{row['name']}: nothing was replayed")
        elif name == "generator" and not row["calls"][0]:
            wrong.append(f"{row['name']}: nothing was drawn from {row['generator']}")
        elif name == "repeat" and row["name"] == "deterministic" and row["parameter_gradients"][1]:
            wrong.append(f"{row['side']} does not repeat with deterministic kernels")
    return wrong
