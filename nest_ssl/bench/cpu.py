"""Both trainers on this machine's CPU, by turns: CPU time of a step and its parts, peak memory, the recorder, start-up.

What is compared is CPU time, so that others on the machine disturb little, and each ratio is of two neighbours: every
round starts both trainers again and divides the port's numbers by NeMo's of the same round.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nest_ssl.base.home import ROOT
from nest_ssl.bench.trainings import Bench
from nest_ssl.bench.workers import LEVELS, Worker, WorkerEnded

Row = dict[str, Any]
PARTS = ("step_ms", "forward_ms", "backward_ms", "optimizer_ms", "peak_bytes")
PRODUCTS = "products_ms"  # the port's matrix products alone, at the rate of a large one: no step can take less


@dataclass(frozen=True)
class Case:
    """Steps to time.

    Args:
        size: of the model, as in conf/size.
        batch: utterances, and the seconds of each.
        rounds: how often both are started and timed.
        steps: timed in a round, behind one to warm up.
        overrides: settings of both sides.
        of_nemo: what of NeMo alone is switched, by which it may be faster.
        of_port: settings of the port alone.
    """

    name: str
    size: str
    batch: tuple[int, float]
    rounds: int
    steps: int
    overrides: tuple[str, ...] = ()
    of_nemo: tuple[str, ...] = ()
    of_port: tuple[str, ...] = ()


FAST = ("numerics=fast",)
BF16 = ("trainer.precision=bf16-mixed",)
LAYERS = ("model.encoder.n_layers=3",)
QUICK = (
    Case("tiny", "tiny", (2, 3.0), 3, 20),
    Case("large, 3 of 17 layers", "large", (2, 3.0), 2, 3, LAYERS),
)
FULL = (
    Case("tiny", "tiny", (2, 3.0), 5, 20),
    Case("medium", "medium", (2, 3.0), 5, 5),
    Case("large", "large", (2, 3.0), 5, 5),
    Case("large", "large", (8, 16.0), 5, 2),
    Case("large, NeMo without type checks", "large", (8, 16.0), 3, 2, (), ("--no-type-checks",)),
    Case("large, bf16-mixed", "large", (8, 16.0), 3, 2, BF16),
    Case("large, fast", "large", (2, 3.0), 3, 5, of_port=FAST),
    Case("large, fast", "large", (8, 16.0), 3, 2, of_port=FAST),
    Case("large, bf16-mixed, fast", "large", (8, 16.0), 3, 2, BF16, of_port=FAST),
    Case("large, fast in bf16-mixed and NeMo in fp32", "large", (8, 16.0), 3, 2, of_port=(*FAST, *BF16)),
    *(Case(f"{layers} layers", "large", (4, 8.0), 3, 2, (f"model.encoder.n_layers={layers}",)) for layers in (1, 4, 8)),
    *(Case(f"{seconds} s", "medium", (4, float(seconds)), 3, 2) for seconds in (2, 4, 8, 16)),
    *(Case(f"{batch} utterances", "medium", (batch, 4.0), 3, 2) for batch in (1, 2, 4, 8)),
)


def steps(bench: Bench, cases: Sequence[Case]) -> list[Row]:
    """A row for each case: by part, the port's median, and the median, least and largest ratio of the port to NeMo."""
    return [_by_turns(bench, case) for case in cases]


def _by_turns(bench: Bench, case: Case) -> Row:
    row: Row = {"name": case.name, "batch": list(case.batch)}
    dtype = "bfloat16" if {*BF16} & {*case.overrides, *case.of_port} else "float32"
    ratios: dict[str, list[float]] = {part: [] for part in (*PARTS, PRODUCTS)}
    port: dict[str, list[float]] = {part: [] for part in ratios}
    for number in range(case.rounds):
        found: dict[str, Mapping[str, Any]] = {}
        for side in ("nemo", "nest") if number % 2 == 0 else ("nest", "nemo"):
            settings = (*(case.of_nemo if side == "nemo" else case.of_port), *case.overrides)
            flags = "fast" if {*FAST} & {*settings} else "deterministic"
            try:
                with Worker(replace(bench, size=case.size), side, *settings) as worker:
                    found[side] = worker.ask(do="steps", warm=1, count=case.steps, batch=case.batch, flags=flags)
                    arithmetic = worker.ask(do="flops", batch=case.batch) if side == "nest" else {}
                    found[side] = {**arithmetic, **found[side]}
            except WorkerEnded as ended:
                return {**row, "error": str(ended)}
        for part in PARTS:
            if found["nemo"][part] and found["nest"][part]:
                ratios[part].append(found["nest"][part] / found["nemo"][part])
                port[part].append(found["nest"][part])
        port[PRODUCTS].append(found["nest"]["flops"] / matrix_rate(dtype) / 1e6)
        ratios[PRODUCTS].append(port[PRODUCTS][-1] / found["nemo"]["step_ms"])
    for part, values in ratios.items():
        if values:
            row[part] = [statistics.median(port[part]), statistics.median(values), min(values), max(values)]
    return row


LEARNING = ("model.optim.lr=0.2", "model.optim.sched.warmup_steps=100")  # so that a few hundred steps learn something


def curve(bench: Bench, batches: int) -> Row:
    """The losses of so many steps of the tiny model on the practice corpus: NeMo's, and the port's in both modes."""
    losses = {}
    for name, side, settings in (("nemo", "nemo", ()), ("exact", "nest", ()), ("fast", "nest", FAST)):
        try:
            with Worker(replace(bench, size="tiny"), side, *settings, *LEARNING) as worker:
                found = worker.ask(do="curve", count=batches, flags="fast" if settings else "deterministic")
        except WorkerEnded as ended:
            return {"error": str(ended)}
        losses[name] = found["losses"]
    return {"losses": losses, "settings": list(LEARNING)}


def recorder(bench: Bench) -> list[Row]:
    """By level: seconds of a recorded step, of a bare one, and of writing as many bytes; CPU seconds of the first."""
    batch, rows = (2, 3.0), []
    try:
        with Worker(replace(bench, size="small"), "nest", record=bench.folder / "recorded") as worker:
            for level, count in LEVELS.items():
                bare = worker.ask(do="steps", warm=1, count=3, batch=batch)
                found = worker.ask(do="record", level=level, count=count, batch=batch)
                seconds = seconds_to_write(bench.folder / "written", found["bytes"])
                row = {"name": f"{level}, size small", "batch": list(batch), "bare": bare["step_ms"] / 1000}
                rows.append({**row, **found, "bytes_alone": seconds})
    except WorkerEnded as ended:
        rows.append({"name": "recorder, size small", "error": str(ended)})
    return rows


def start_up(bench: Bench) -> list[Row]:
    """CPU seconds of commands that compute nothing."""
    python = bench.sides["nest"].python
    commands = {
        "nest-ssl --help": ["-m", "nest_ssl.cli.main", "--help"],
        "nest-ssl compare, bad usage": ["-m", "nest_ssl.cli.main", "compare", "--nonsense"],
        "train_nest.py --help": ["scripts/train_nest.py", "--help"],
        "train_nest.py, bad usage": ["scripts/train_nest.py", "siz=tiny"],
    }
    rows: list[Row] = []
    for name, words in commands.items():
        took = [_cpu_seconds([python, *words]) for _ in range(3)]
        rows.append({"name": name, "seconds": statistics.median(took)})
    return rows


def matrix_rate(dtype: str = "float32", size: int = 1024) -> float:
    """GFLOP/s of one thread multiplying matrices, by its CPU time: the best of some."""
    import torch

    one = torch.randn(size, size, dtype=getattr(torch, dtype))
    took = []
    for _ in range(8):
        before = time.process_time()
        torch.mm(one, one)
        took.append(time.process_time() - before)
    return 2 * size**3 / min(took) / 1e9


def seconds_to_write(path: Path, size: int) -> float:
    """So many bytes to the disk, a mebibyte at a time; they are deleted again."""
    block, before = os.urandom(1 << 20), time.perf_counter()
    with path.open("wb") as stream:
        for _ in range(-(-size // len(block))):
            stream.write(block)
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - before
    path.unlink()
    return seconds


def _cpu_seconds(command: Sequence[str]) -> float:
    """User and system time of a process and of those that it waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
