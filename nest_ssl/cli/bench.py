"""Time both trainers on this machine's CPU, by turns, and write docs/benchmarks.md.

    nest-ssl bench --quick --nemo-python .venv/nemo-3.0.0/bin/python      # make bench QUICK=1
    nest-ssl bench --targets --nemo-python ...                            # what targets are about: half an hour
    nest-ssl bench --only large                                           # cases of that name; the others stay
    nest-ssl bench --only curve                                           # or a part, as profile: minutes

What is recorded, and deleted again, takes up to 30 GB in TMPDIR, with --quick 6.

Exit codes: 0 all was measured; 1 something could not be had; 3 bad usage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError
from nest_ssl.base.files import lock
from nest_ssl.base.home import WORK
from nest_ssl.base.spelling import did_you_mean

if TYPE_CHECKING:
    from nest_ssl.bench.cpu import Case
    from nest_ssl.bench.trainings import Bench

PARTS = ("curve", "profile", "loader", "comparer", "recorder", "start")  # besides the cases
ALONE = {"comparer", "recorder"}  # are of the port alone
HAS_NEMO = "import importlib.util, sys; sys.exit(importlib.util.find_spec('nemo') is None)"
LEARNT = 300  # steps of the curve


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl bench`; returns the exit code.

    Raises:
        UserError: no such case, a Python that is not there or has no NeMo, or a file that holds other results.
    """
    parser = Parser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="few and small: 3 minutes (default: all, hours)")
    size.add_argument("--targets", action="store_true", help="what the page's targets are about: half an hour")
    parser.add_argument("--only", default="", help=f"cases of this name alone, or a part: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=_positive, help="how often both are started (default: by case)")
    parser.add_argument("--out", type=Path, default=WORK / "docs", help="folder of the page (default: docs)")
    parser.add_argument("--nemo-python", default=sys.executable, help="that of NeMo's environment (default: this one)")
    parser.add_argument("--nest-python", default=sys.executable, help="that of the port's (default: this one)")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process that is timed: the page says so, and make sets it too
    pythons = {name: shutil.which(getattr(options, f"{name}_python")) for name in ("nemo", "nest")}
    for name, python in pythons.items():
        if python is None:
            raise UserError("no such Python", getattr(options, f"{name}_python"), "Make environments with make setup.")

    from nest_ssl.bench import cpu, cpu_page
    from nest_ssl.bench.trainings import Bench, Side, machine
    from nest_ssl.cli.explain import sigterm_interrupts
    from nest_ssl.record.provenance import describe_run

    preset = cpu.QUICK if options.quick else cpu.TARGETS if options.targets else cpu.FULL
    cases = [case for case in preset if options.only in ("", case.name)]
    parts = [part for part in PARTS if options.only in ("", part)]
    if not options.only:  # the curve learns the same on any machine, and a profile is of large steps
        left_out = {"curve", "profile"} if options.quick else {"curve"} if options.targets else set()
        parts = [part for part in parts if part not in left_out]
    if not cases and not parts:
        presets = {"--quick": cpu.QUICK, "--targets": cpu.TARGETS, "neither --quick nor --targets": cpu.FULL}
        names = [*dict.fromkeys(case.name for case in preset), *PARTS]
        fix = did_you_mean(options.only.lower(), names, f"One of: {'; '.join(names)}.")
        if found := [words for words, cases in presets.items() if options.only in {case.name for case in cases}]:
            fix = f"Give {found[0]}."
        raise UserError("no such case", repr(options.only), fix)
    if (cases or not ALONE.issuperset(parts)) and subprocess.run([pythons["nemo"], "-c", HAS_NEMO]).returncode != 0:
        raise UserError("no NeMo in this Python", str(pythons["nemo"]), "Give --nemo-python; make setup makes one.")
    if options.rounds:
        cases = [replace(case, rounds=options.rounds) for case in cases]
    sides = {name: Side(os.path.abspath(python), f"scripts/train_{name}.py") for name, python in pythons.items()}  # type: ignore[type-var]
    # Two at once would measure each other.
    with lock(options.out / ".benchmarks.lock", "bench"), sigterm_interrupts(), cpu.temporary_folder() as folder:
        cpu_page.save(cpu_page.load(options.out / "benchmarks.json"), options.out)  # known now whether it can be
        header: dict[str, Any] = {}
        if cases or parts != ["curve"]:  # what a curve learns is no matter of the machine
            where, rate = machine(describe_run()), f"{cpu.matrix_rate():.0f} GFLOP/s in float32 matrix products"
            header["machine"] = f"{where['card']}, {where['cores']} cores, {rate}, torch {where['torch']}"
            header["day"] = cpu_page.today(where["commit"])
        bench = Bench(sides=sides, accelerator="cpu", size="tiny", folder=folder)
        return measure(bench, cases, parts, header, options)


def measure(
    bench: Bench, cases: Sequence[Case], parts: Sequence[str], header: dict[str, Any], options: argparse.Namespace
) -> bool:
    """Measure cases and parts and write the results as they come; whether one could not be had."""
    from nest_ssl.bench import cpu, cpu_page

    lost = False
    for group in cpu.groups(cases):
        found = cpu.steps(bench, group)
        cpu_page.add(options.out, header, "steps", found)
        for row in found:
            print(f"bench: {row['name']}, {row['batch']}: {row.get('step_ms') or row.get('error')}", flush=True)
            lost |= "error" in row
    measured: dict[str, Callable[[], Any]] = {
        "profile": lambda: cpu.profile(bench, cpu.PROFILED),
        "loader": lambda: cpu.loader(bench, 1 if options.quick else 6),
        "start": lambda: cpu.start_up(bench, aligned=not options.quick),
        "comparer": lambda: cpu.comparer(bench),
        "recorder": lambda: cpu.recorder(bench, cpu.QUICKLY_RECORDED if options.quick else list(cpu.RECORDED)),
        "curve": lambda: cpu.curve(bench, LEARNT),
    }
    for part in [part for part in measured if part in parts]:
        rows = measured[part]()
        cpu_page.add(options.out, header, part, rows)
        errors = [row["error"] for row in (rows if isinstance(rows, list) else [rows]) if "error" in row]
        print(f"bench: {part}: {'; '.join(['measured', *dict.fromkeys(errors)])}", flush=True)
        lost |= bool(errors)
    return lost


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rounds")
    return number
