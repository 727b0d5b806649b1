"""Time both trainers on this machine's CPU, by turns, and write docs/benchmarks.md.

    nest-ssl bench --quick --nemo-python .venv/nemo-3.0.0/bin/python      # make bench QUICK=1
    nest-ssl bench --only large                                           # cases of that name; the others stay
    nest-ssl bench --only curve                                           # losses of 300 steps, and their picture

Exit codes: 0 all was measured; 1 something could not be had; 3 bad usage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError
from nest_ssl.base.home import ROOT
from nest_ssl.base.spelling import did_you_mean

CURVE, LEARNT = "curve", 300  # its name, and steps


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl bench`; returns the exit code.

    Raises:
        UserError: no such case, a trainer's Python that is not there, or a file that holds other results.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and small: 3 minutes (default: all, hours)")
    parser.add_argument("--only", default="", help="cases of this name alone, without recorder and start-up")
    parser.add_argument("--rounds", type=_positive, help="how often both are started (default: by case)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the page (default: docs)")
    parser.add_argument("--nemo-python", default=sys.executable, help="that of NeMo's environment (default: this one)")
    parser.add_argument("--nest-python", default=sys.executable, help="that of the port's (default: this one)")
    options = parser.parse_args(argv)
    pythons = {name: shutil.which(getattr(options, f"{name}_python")) for name in ("nemo", "nest")}
    for name, python in pythons.items():
        if python is None:
            given = getattr(options, f"{name}_python")
            raise UserError("no such Python", given, "Make the environments with make setup.")

    from nest_ssl.bench import cpu, cpu_page
    from nest_ssl.bench.trainings import Bench, Side, machine
    from nest_ssl.record.provenance import describe_run

    cases = [case for case in (cpu.QUICK if options.quick else cpu.FULL) if options.only in ("", case.name)]
    if not cases and options.only != CURVE:
        names = [*dict.fromkeys(case.name for case in cpu.FULL), CURVE]
        raise UserError("no such case", repr(options.only), did_you_mean(options.only, names))
    if options.rounds:
        cases = [replace(case, rounds=options.rounds) for case in cases]
    results = cpu_page.load(options.out / "benchmarks.json")
    if cases:  # what a curve learns is no matter of the machine
        where = machine(describe_run())
        rate = f"{cpu.matrix_rate():.0f} GFLOP/s in float32 matrix products"
        results["machine"] = f"{where['card']}, {where['cores']} cores, {rate}, torch {where['torch']}"
        results["day"] = cpu_page.today()
    sides = {name: Side(os.path.abspath(python), f"scripts/train_{name}.py") for name, python in pythons.items()}  # type: ignore[type-var]
    with tempfile.TemporaryDirectory(prefix="nest-ssl-bench-") as folder:
        bench = Bench(sides=sides, accelerator="cpu", size="tiny", folder=Path(folder))
        for case in cases:
            results["steps"] = cpu_page.merge(results["steps"], found := cpu.steps(bench, [case]))
            cpu_page.save(results, options.out)
            print(f"bench: {case.name}, {case.batch}: {found[0].get('step_ms') or found[0].get('error')}", flush=True)
        if options.only in ("", CURVE):
            results["curve"] = cpu.curve(bench, LEARNT)
            cpu_page.save(results, options.out)
            print(f"bench: curve: {results['curve'].get('error', 'learnt')}", flush=True)
        if not options.only:
            results["recorder"] = cpu.recorder(bench)
            results["start"] = cpu.start_up(bench)
            cpu_page.save(results, options.out)
    return any("error" in row for row in (*results["steps"], *results["recorder"], results.get("curve", {})))


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rounds")
    return number
