"""The parts one after another, and their results written as they come."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import date
from math import isinf
from pathlib import Path
from typing import Any

from nest_ssl.base.files import write_atomically
from nest_ssl.bench import explained, measured, recorded
from nest_ssl.bench.document import page
from nest_ssl.bench.results import Machine, Part, foreign_results, load_results
from nest_ssl.bench.trainings import NO_TIME, Bench, machine
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
# What each takes on an H200: where time is short, it is shared out so.
SECONDS = {"parity": 165, "generator": 110, "resume": 135, "cpu-gpu": 65, "explain": 110, "repeat": 30, "sync": 30,
           "speed": 130, "recorder": 90}  # fmt: skip


def run_parts(bench: Bench, parts: Sequence[str], file: Path, document: Path) -> int:
    """Run `parts`, the recorded ones side by side, then the measured ones alone; returns the exit code.

    Each has its share of the time that is left when it starts. A part that had none, or of which nothing could be had,
    says so, and what it found in an earlier run stays; the others go on.

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
        earlier, day = results.parts.get(name), str(date.today())
        errors = [row.get("error", "") for row in rows]
        if earlier and all(errors) and not all("error" in row for row in earlier.rows):
            # What failed before what had no time.
            why = min(errors, key=lambda said: all(one.endswith(NO_TIME) for one in said.split("; ")), default=NO_TIME)
            earlier.tried = f"{day}: {why.rstrip('.')}"
        else:
            command = f'make test-gpu ARGS="--parts {name}{bench.words}"'
            results.parts[name] = Part(machine=where, day=day, seconds=round(seconds, 1), command=command, rows=rows)
        results.save(file)
        write_atomically(document, render_markdown(page(results)))
        wrong = faults(name, rows)
        failed.extend(wrong)
        print(
            f"gpu: {name}: {len(rows)} rows in {seconds:.0f} s" + "".join(f"\n  {line}" for line in wrong), flush=True
        )

    beside, alone = ([name for name in dict.fromkeys(parts) if name in kind] for kind in (RECORDED, MEASURED))
    with ThreadPoolExecutor(len(RECORDED)) as pool:
        own = share(bench, beside, alone)
        running = {
            pool.submit(timed, name, RECORDED[name], replace(own, place=place)): name
            for place, name in enumerate(beside)
        }
        for done in as_completed(running):
            keep(running[done], *done.result())
            for recording in bench.folder.glob(f"{running[done]}*/*/"):  # gigabytes; the logs stay
                shutil.rmtree(recording, ignore_errors=True)
    with measured.Workers(bench) as workers:
        for number, name in enumerate(alone):
            workers.bench = share(bench, [name], alone[number + 1 :])
            keep(name, *timed(name, MEASURED[name], workers.bench, workers))
    return bool(failed)


def timed(name: str, part: Callable[..., Rows], own: Bench, *arguments: Any) -> tuple[Rows, float]:
    """The rows of a part and its seconds; where it fails, a row that says so."""
    started = time.perf_counter()
    try:
        rows = part(own, *arguments)
    except Exception as error:  # noqa: BLE001  (a part's, and not the others')
        traceback.print_exc()
        rows = [{"name": name, "error": f"{type(error).__name__}: {error}"}]
    return rows, time.perf_counter() - started


def share(bench: Bench, parts: Sequence[str], later: Sequence[str]) -> Bench:
    """The bench for as long as `parts` may take of the time that is left to them and the `later` ones."""
    own, others = (sum(SECONDS[name] for name in names) for names in (parts, later))
    if isinf(bench.deadline) or not others:
        return bench
    return replace(bench, deadline=time.monotonic() + bench.seconds_left * own / (own + others))


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
