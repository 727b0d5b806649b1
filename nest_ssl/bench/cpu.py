"""Both trainers on this machine's CPU, by turns: CPU time of a step and its parts, peak memory, the recorder, start-up.

What is compared is CPU time, so that others on the machine disturb little, and each ratio is of two neighbours: every
round starts both trainers again and divides the port's numbers by NeMo's of the same round.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import EXIT_BAD_INPUT, EXIT_OK, UserError
from nest_ssl.base.home import ROOT
from nest_ssl.bench import loading, profiled
from nest_ssl.bench.trainings import Bench
from nest_ssl.bench.workers import GIVEN_BACK, LEVELS, NO_TYPE_CHECKS, Worker, WorkerEnded

Row = dict[str, Any]
PARTS = ("step_ms", "user_ms", "forward_ms", "backward_ms", "optimizer_ms", "peak_bytes")
PRODUCTS = "products_ms"  # matrix products of a step that decodes all tokens, alone, at the rate of a large one


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
SDPA = "model.encoder.use_pytorch_sdpa=true"  # other sums than those of the port's exact mode
QUICK = (
    Case("tiny", "tiny", (2, 3.0), 2, 20),
    Case("large, 3 of 17 layers", "large", (2, 3.0), 2, 3, LAYERS),
)
TARGETS = (  # what the page's targets are about, in minutes
    Case("large", "large", (2, 3.0), 3, 3),
    Case("large, fast", "large", (2, 3.0), 3, 3, of_port=FAST),
    Case("large", "large", (8, 16.0), 1, 2),
    Case("large, fast", "large", (8, 16.0), 1, 2, of_port=FAST),
    Case("large, fast in bf16-mixed and NeMo in fp32", "large", (8, 16.0), 1, 2, of_port=(*FAST, *BF16)),
    Case("large, bf16-mixed, fast", "large", (8, 16.0), 1, 1, BF16, of_port=FAST),
    Case("large, NeMo gives memory back", "large", (8, 16.0), 1, 2, (), (GIVEN_BACK,)),
)
FULL = (
    Case("tiny", "tiny", (2, 3.0), 5, 20),
    Case("medium", "medium", (2, 3.0), 5, 5),
    Case("large", "large", (2, 3.0), 5, 5),
    Case("large", "large", (8, 16.0), 5, 2),
    Case("large, NeMo gives memory back", "large", (8, 16.0), 3, 2, (), (GIVEN_BACK,)),
    Case("large, NeMo without type checks", "large", (8, 16.0), 3, 2, (), (NO_TYPE_CHECKS,)),
    Case("large, NeMo with torch's attention", "large", (8, 16.0), 3, 2, (), (SDPA,)),
    Case("large, bf16-mixed", "large", (8, 16.0), 3, 2, BF16),
    Case("large, fast", "large", (2, 3.0), 5, 5, of_port=FAST),
    Case("large, fast", "large", (8, 16.0), 5, 2, of_port=FAST),
    Case("large, bf16-mixed, fast", "large", (8, 16.0), 3, 2, BF16, of_port=FAST),
    Case("large, fast in bf16-mixed and NeMo in fp32", "large", (8, 16.0), 5, 2, of_port=(*FAST, *BF16)),
    *(Case(f"{layers} layers", "large", (4, 8.0), 3, 2, (f"model.encoder.n_layers={layers}",)) for layers in (1, 4, 8)),
    *(Case(f"{seconds} s", "medium", (4, float(seconds)), 3, 2) for seconds in (2, 4, 8, 16)),
    *(Case(f"{batch} utterances", "medium", (batch, 4.0), 3, 2) for batch in (1, 2, 4, 8)),
)


def groups(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that differ in their names and in the port's settings alone: NeMo is timed once for all of them."""
    by_nemo: dict[Case, list[Case]] = {}
    for case in cases:
        by_nemo.setdefault(replace(case, name="", of_port=()), []).append(case)
    return list(by_nemo.values())


def steps(bench: Bench, cases: Sequence[Case]) -> list[Row]:
    """A row for each case of a group: by part, the port's median, and the median, least and largest ratio of the port
    to NeMo."""
    rounds: list[dict[Case | None, Mapping[str, Any]]] = []
    for number in range(cases[0].rounds):
        turns: list[Case | None] = [None, *cases]  # NeMo first, and last in the next round
        rounds.append({case: _timed(bench, cases[0], case) for case in (turns if number % 2 == 0 else turns[::-1])})
    return [_row(case, [(found[None], found[case]) for found in rounds]) for case in cases]


def _timed(bench: Bench, first: Case, case: Case | None) -> Mapping[str, Any]:
    """Milliseconds of a step and its parts, of the port in this case, or of NeMo in the group of the first."""
    side, alone = ("nemo", first.of_nemo) if case is None else ("nest", case.of_port)
    settings = (*alone, *first.overrides)
    flags = "fast" if {*FAST} & {*settings} else "deterministic"
    try:
        with Worker(replace(bench, size=first.size), side, *settings) as worker:
            found = dict(worker.ask(do="steps", warm=1, count=first.steps, batch=first.batch, flags=flags))
            if case is not None:
                rate = matrix_rate("bfloat16" if {*BF16} & {*settings} else "float32")
                found[PRODUCTS] = worker.ask(do="flops", batch=first.batch)["flops"] / rate / 1e6
    except WorkerEnded as ended:
        return {"error": str(ended)}
    return found


def _row(case: Case, rounds: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Row:
    row: Row = {"name": case.name, "batch": list(case.batch), "rounds": len(rounds)}
    for nemo, port in rounds:
        if "error" in nemo or "error" in port:
            return {**row, "error": nemo.get("error") or port["error"]}
    for part in (*PARTS, PRODUCTS):
        of_nemo = "user_ms" if part == PRODUCTS else part
        taken = [(port[part], nemo[of_nemo]) for nemo, port in rounds if port[part] and nemo[of_nemo]]
        if taken:
            ratios = [port / nemo for port, nemo in taken]
            median = statistics.median(port for port, _ in taken)
            row[part] = [median, statistics.median(ratios), min(ratios), max(ratios)]
    return row


TRAINERS = {"nemo": ("nemo", ()), "exact": ("nest", ()), "fast": ("nest", FAST)}
TIMES = 3  # profiled: of one step alone, small parts come out twice as slow as of the next
# Name, size, batch and settings; and whether hooks may look into the port's layers, which are open then.
PROFILED = (
    ("large, 3 of 17 layers", "large", (8, 16.0), LAYERS, False),
    ("large", "large", (2, 3.0), (), True),  # open by itself, so small is it
)


def profile(bench: Bench, cases: Sequence[tuple[str, str, tuple[int, float], tuple[str, ...], bool]]) -> list[Row]:
    """A row for each case: milliseconds of each trainer's step, medians of some, by kind of operator and by part."""
    rows: list[Row] = []
    for name, size, batch, settings, opened in cases:
        row: Row = {"name": name, "batch": list(batch)}
        for trainer, (side, own) in TRAINERS.items():
            try:
                with Worker(replace(bench, size=size), side, *own, *settings) as worker:
                    flags, inside = "fast" if own else "deterministic", opened or side == "nemo"
                    order = {"do": "profile", "batch": batch, "flags": flags, "inside": inside}
                    row[trainer] = profiled.medians([worker.ask(**order) for _ in range(TIMES)])
            except WorkerEnded as ended:
                row["error"] = str(ended)
        rows.append(row)
    return rows


LEARNING = ("model.optim.lr=0.2", "model.optim.sched.warmup_steps=100")  # so that a few hundred steps learn something


def curve(bench: Bench, batches: int) -> Row:
    """The losses of so many steps of the tiny model on the practice corpus: NeMo's, and the port's in both modes."""
    losses = {}
    for name, (side, settings) in TRAINERS.items():
        try:
            with Worker(replace(bench, size="tiny"), side, *settings, *LEARNING) as worker:
                found = worker.ask(do="curve", count=batches, flags="fast" if settings else "deterministic")
        except WorkerEnded as ended:
            return {"error": str(ended)}
        losses[name] = found["losses"]
    return {"losses": losses, "settings": list(LEARNING)}


RECORDED = {  # by name: size, batch and settings of the steps that are recorded; from the fewest bytes to the most
    "tiny": ("tiny", (2, 3.0), ()),
    "large, 3 of 17 layers": ("large", (4, 8.0), LAYERS),
    "large": ("large", (8, 16.0), ()),  # 12 GB a step at level modules
}
QUICKLY_RECORDED = ["large, 3 of 17 layers"]


def recorder(bench: Bench, names: Sequence[str] = tuple(RECORDED)) -> list[Row]:
    """By level and model: a recorded step's seconds by the clock, of the thread that trains and of all threads; a bare
    step's, and those of writing as many bytes."""
    rows: list[Row] = []
    for name in names:
        size, batch, settings = RECORDED[name]
        try:
            with Worker(replace(bench, size=size), "nest", *settings, record=bench.folder / "recorded") as worker:
                for level, count in LEVELS.items():
                    bare = worker.ask(do="steps", warm=1, count=3, batch=batch)
                    found = worker.ask(do="record", level=level, count=count, batch=batch)
                    row = {"name": f"{level}, {name}", "batch": list(batch), "bare": bare["step_ms"] / 1000}
                    alone = seconds_to_write(bench.folder / "written", found["bytes"])
                    rows.append({**row, **found, "bare_clock": bare["clock"], "bytes_alone": alone, "each": []})
        except WorkerEnded as ended:
            rows.append({"name": f"recorder, {name}", "error": str(ended)})
        shutil.rmtree(bench.folder / "recorded", ignore_errors=True)
    return [*rows, recorded_steps(bench)]


def recorded_steps(bench: Bench, count: int = 32) -> Row:
    """Of so many steps of the tiny model, recorded one behind the other: of each the seconds until it is written, its
    bytes, and the most memory of the process until then."""
    row: Row = {"name": "recorded steps, tiny"}
    order = {"do": "record", "level": "modules", "count": count, "batch": (2, 3.0)}
    try:
        with Worker(replace(bench, size="tiny"), "nest", record=bench.folder / "recorded") as worker:
            return {**row, "each": worker.ask(**order)["each"]}
    except WorkerEnded as ended:
        return {**row, "error": str(ended)}
    finally:
        shutil.rmtree(bench.folder / "recorded", ignore_errors=True)


COMPARED = """
import sys
import time
from pathlib import Path
import torch
from nest_ssl.base.safe_load import load_tensors
from nest_ssl.compare.findings import Spot
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.values import Comparer
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Moment, Phase
torch.set_num_threads(1)
before = time.process_time()
sides = [load_tensors(Path(path), mapped=True) for path in sys.argv[1:]]
Comparer(SameBits()).nested(Spot("forward", Moment(0, Phase.FORWARD), Address(Kind.OUTPUT, "m", 0)), *sides)
print(time.process_time() - before)
"""


def comparer(bench: Bench, size: int = 1 << 28) -> list[Row]:
    """GB a second of one core, of one side's bytes: tensors that are equal, that all differ, and `cmp` of equal; and
    the memory of the process's own that it took."""
    import torch

    from nest_ssl.base.tensor_writer import write_tensors

    rows, one = [], [torch.randn(1 << 22) for _ in range(size >> 24)]
    values = {"reference": one, "equal": one, "all different": [value + 1e-6 * torch.randn(1 << 22) for value in one]}
    paths = {name: bench.folder / name / "tensors.pt" for name in values}  # of one name, which is in the file
    for name, path in paths.items():
        path.parent.mkdir()
        write_tensors(path, values[name])
    del one, values
    for name in ("equal", "all different"):
        said, most = own_memory([sys.executable, "-c", COMPARED, str(paths["reference"]), str(paths[name])])
        rows.append({"name": name, "gbs": size / 1e9 / float(said), "own_bytes": most})
    before = _cpu_seconds()
    if shutil.which("cmp"):
        subprocess.run(["cmp", paths["equal"], paths["reference"]], stdout=subprocess.DEVNULL, check=False)
        rows.append({"name": "cmp, equal", "gbs": size / 1e9 / (_cpu_seconds() - before)})
    return rows


def own_memory(command: Sequence[str]) -> tuple[str, int | None]:
    """What a command prints, and the most memory that it held, files that are mapped aside, seen every few ms."""
    most = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            while child.poll() is None:
                with suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                    most = max(most, 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]))
                time.sleep(0.003)
            return child.communicate()[0], most or None
        finally:
            child.kill()  # where we are interrupted: what it reads is deleted then


def loader(bench: Bench, batches: int) -> Row:
    """CPU milliseconds of a loaded item, of NeMo and of the port, by stage, and whether the bits are the same."""
    settings = loading.write_corpus(bench.folder / "corpus")
    found = []
    for side in ("nemo", "nest"):
        try:
            with Worker(replace(bench, size="tiny"), side, *settings) as worker:
                found.append(worker.ask(do="load", count=batches))
        except WorkerEnded as ended:
            return {"error": str(ended)}
    stages = {stage: [each["stages"][stage] for each in found] for stage in (*loading.STAGES, loading.PROFILED)}
    total = [each["item_ms"] for each in found]
    return {"item_ms": total, "stages": stages, "same": found[0]["sha256"] == found[1]["sha256"]}


def start_up(bench: Bench, aligned: bool) -> list[Row]:
    """Seconds, by CPU time and by the clock, of commands that compute nothing, of the first batch of a large model, and
    if `aligned`, of recording both trainers and comparing them."""
    python = bench.sides["nest"].python
    align = ["make", "--no-print-directory", "align", "SIZE=large", "RUNTIME=local", f"OUT={bench.folder / 'align'}"]
    commands = {  # and the exit code of each
        "nest-ssl --help": ([python, "-m", "nest_ssl.cli.main", "--help"], EXIT_OK),
        "nest-ssl compare, bad usage": ([python, "-m", "nest_ssl.cli.main", "compare", "--nonsense"], EXIT_BAD_INPUT),
        "train_nest.py --help": ([python, "scripts/train_nest.py", "--help"], EXIT_OK),
        "train_nest.py, bad usage": ([python, "scripts/train_nest.py", "siz=tiny"], EXIT_BAD_INPUT),
        **({"make align SIZE=large": (align, EXIT_OK)} if aligned else {}),
    }
    rows: list[Row] = []
    for name, (command, expected) in commands.items():
        took = sorted(_seconds(command) for _ in range(1 if command is align else 3))
        seconds, clock, _ = took[len(took) // 2]
        error = next(({"error": f"exit code {code}"} for *_, code in took if code != expected), {})
        rows.append({"name": name, "seconds": seconds, "clock": clock, **error})
    shutil.rmtree(bench.folder / "align", ignore_errors=True)
    for side, label in (("nemo", "NeMo"), ("nest", "the port")):
        row: Row = {"name": f"first batch of {label}, large"}
        before, started = _cpu_seconds(), time.perf_counter()
        try:
            with Worker(replace(bench, size="large"), side) as worker:
                worker.ask(do="load", count=1)
                row["clock"] = time.perf_counter() - started
            rows.append({**row, "seconds": _cpu_seconds() - before})
        except WorkerEnded as ended:
            rows.append({**row, "error": str(ended)})
    return rows


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """For recordings and logs.

    Raises:
        UserError: its disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="nest-ssl-bench-") as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
                raise
            fix = "Free some space, or set TMPDIR to a folder with 30 GB (6 with --quick)."
            raise UserError("no space left on the disk", folder, fix) from error


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


def _seconds(command: Sequence[str]) -> tuple[float, float, int]:
    """CPU time of a process and of those that it waits for, seconds by the clock, and the exit code."""
    before, started = _cpu_seconds(), time.perf_counter()
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    ended = subprocess.run(command, cwd=ROOT, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return _cpu_seconds() - before, time.perf_counter() - started, ended.returncode


def _cpu_seconds() -> float:
    """Of all processes that were waited for."""
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken.ru_utime + taken.ru_stime
