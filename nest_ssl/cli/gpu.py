"""Run both trainers on the GPU, compare and time them, and write what came of it.

    nest-ssl gpu --nemo-python .venv/nemo-3.0.0/bin/python        # make test-gpu
    nest-ssl gpu --parts sync,speed --seconds 300
    nest-ssl gpu --device cpu --quick --seconds 600        # a dry run: does every part come to its end?

Exit codes: 0 all parts ran and nothing differs that must not; 1 something does, or could not be had; 3 no GPU, or bad
usage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError
from nest_ssl.base.home import WORK
from nest_ssl.base.spelling import did_you_mean

PARTS = ("parity", "generator", "resume", "cpu-gpu", "explain", "repeat", "sync", "speed", "recorder")


def main(argv: Sequence[str] | None = None) -> int:
    """`nest-ssl gpu`; returns the exit code.

    Raises:
        UserError: no GPU, no such part, a trainer's Python that is not there.
    """
    parser = Parser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="which (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="default: docs/gpu.json; of a dry run outputs/gpu.json")
    parser.add_argument("--page", type=Path, help="default: docs/gpu.md; of a dry run outputs/gpu.md")
    parser.add_argument("--nemo-python", default=sys.executable, help="that of NeMo's environment (default: this one)")
    parser.add_argument("--nest-python", default=sys.executable, help="that of the port's (default: this one)")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu", help="cpu: a dry run (default gpu)")
    parser.add_argument("--quick", action="store_true", help="a dry run: every part of the tiny model, in few steps")
    parser.add_argument("--nest-script", default="scripts/train_nest.py", help="the port's (default: %(default)s)")
    parser.add_argument("--size", help="of the larger model (default large; quick: tiny)")
    parser.add_argument("--batches", type=_batches, help="to time (default 8x16,32x16; quick: 2x2)")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side (default 2)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="then stop (default: no limit)")
    parser.add_argument("--work", type=Path, help="where recordings and logs go (default: a temporary folder)")
    options = parser.parse_args(argv)
    parts = [part for part in options.parts.split(",") if part]
    for part in parts:
        if part not in PARTS:
            raise UserError("no such part", repr(part), did_you_mean(part, PARTS))
    pythons = {}
    for name in ("nemo", "nest"):
        given = getattr(options, f"{name}_python")
        pythons[name] = shutil.which(given) or ""
        if not pythons[name]:
            raise UserError("no such Python", given, "Make the environments with make setup.")

    from nest_ssl.bench.run import run_parts
    from nest_ssl.bench.trainings import Bench, Side, Slots, refuse_without_gpu

    refuse_without_gpu(options.device)
    scripts = {"nemo": "scripts/train_nemo.py", "nest": options.nest_script}
    sides = {name: Side(os.path.abspath(python), scripts[name]) for name, python in pythons.items()}
    # What was measured on a GPU is not written over by a run that only shows that the parts work.
    place = WORK / ("outputs" if options.quick or options.device == "cpu" else "docs")
    with tempfile.TemporaryDirectory(prefix="nest-ssl-gpu-") as folder:
        bench = Bench(
            sides=sides,
            accelerator=options.device,
            size=options.size or ("tiny" if options.quick else "large"),
            folder=(options.work or Path(folder)).absolute(),
            batches=options.batches or _batches("2x2" if options.quick else "8x16,32x16"),
            slots=Slots(max(1, options.at_once)),
            deadline=time.monotonic() + options.seconds,
            quick=options.quick,
        )
        return run_parts(bench, parts, options.results or place / "gpu.json", options.page or place / "gpu.md")


def _batches(text: str) -> tuple[tuple[int, float], ...]:
    try:
        found: Any = tuple((int(pair[0]), float(pair[1])) for pair in (each.split("x") for each in text.split(",")))
    except (ValueError, IndexError):
        found = ()
    if not found or any(count < 1 or seconds < 1 for count, seconds in found):
        raise argparse.ArgumentTypeError(f"{text} is no list of UTTERANCESxSECONDS, as in 8x16,32x16")
    return found  # type: ignore[no-any-return]
