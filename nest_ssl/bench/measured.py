"""Parts of the bench that ask workers: what does not repeat, where the host waits, how fast a step is.

Each takes a `Bench` and the workers, and returns rows. They run alone: nothing else may use the device meanwhile.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from nest_ssl.bench.cpu import seconds_to_write
from nest_ssl.bench.trainings import NO_TIME, Bench
from nest_ssl.bench.workers import LEVELS, Worker, WorkerEnded

Rows = list[dict[str, Any]]
SIDES = ("nemo", "nest")
# Also of the port: numerics=fast, and both with the encoder's kernels replayed.
TRAINERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nemo": ("nemo", ()),
    "nest": ("nest", ()),
    "replayed": ("nest", ("cuda_graphs=true",)),
    "fast": ("nest", ("numerics=fast",)),
    "graphs": ("nest", ("numerics=fast", "cuda_graphs=true")),
}
FP32, BF16 = "32", "bf16-mixed"
LEAST_S = 15  # of time left for another order


class Workers(ExitStack):
    """One for each trainer and precision, started when first wanted and kept; a dead one is started again.

    Attributes:
        bench: of the part that asks, whose time is meant.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self._started: dict[tuple[str, str, Path | None], Worker] = {}

    def start(self, *wanted: tuple[str, str]) -> None:
        """Start several at once, and wait until all are ready: each takes seconds, which would disturb the others."""
        if self.bench.seconds_left < LEAST_S:
            return
        for worker in [self.get(side, precision) for side, precision in wanted]:
            with suppress(WorkerEnded):
                worker.ask(do="ready")

    def get(self, side: str, precision: str, record: Path | None = None) -> Worker:
        key = side, precision, record
        if key not in self._started:
            trainer, settings = TRAINERS[side]
            worker = Worker(self.bench, trainer, *settings, f"trainer.precision={precision}", record=record)
            self._started[key] = self.enter_context(worker)
        self._started[key].bench = self.bench
        return self._started[key]

    def ask(self, side: str, precision: str, record: Path | None = None, **order: Any) -> dict[str, Any]:
        """The answer, or what went wrong, as `error`."""
        if self.bench.seconds_left < LEAST_S:  # a worker whose time is over is ended, and the next part may want it
            return {"error": f"{side}: {NO_TIME}"}
        try:
            return dict(self.get(side, precision, record).ask(**order))
        except WorkerEnded as ended:
            self._started.pop((side, precision, record), None)
            return {"error": str(ended)}


def repeat(bench: Bench, workers: Workers) -> Rows:
    """Forward and backward of one batch, several times from the same state, with and without deterministic kernels."""
    workers.start(*((side, FP32) for side in SIDES))
    rows: Rows = []
    for flags in ("deterministic", "free"):
        for side in SIDES:
            found = workers.ask(side, FP32, do="repeat", times=5, flags=flags, batch=bench.batches[0])
            rows.append({"name": flags, "side": side, **found})
    return rows


def sync(bench: Bench, workers: Workers) -> Rows:
    """How often, and where, forward and backward make the host wait for the device."""
    sides = (*SIDES, "fast")
    workers.start(*((side, FP32) for side in sides))
    rows: Rows = []
    for side in sides:
        workers.ask(side, FP32, do="steps", count=1, batch=bench.batches[0])  # what happens once is over then
        rows.append({"name": "one step", "side": side, **workers.ask(side, FP32, do="sync", batch=bench.batches[0])})
    return rows


# Name: precision, flags, TF32, and who is timed; the fast mode has flags of its own, and TF32.
MODES: dict[str, tuple[str, str, bool, tuple[str, ...]]] = {
    "fp32": (FP32, "deterministic", False, tuple(TRAINERS)),
    "TF32": (FP32, "deterministic", True, (*SIDES, "replayed")),
    "bf16-mixed": (BF16, "deterministic", False, tuple(TRAINERS)),
    "fp32, any kernel": (FP32, "free", False, SIDES),
    "bf16-mixed, any kernel": (BF16, "free", False, SIDES),
}
# Steps that are not timed, else 2: a shape is captured when it comes for the third time.
WARM = {"replayed": 4, "graphs": 4}


def speed(bench: Bench, workers: Workers) -> Rows:
    """Steps of all trainers by turns, the card's limits, and where forward takes its time."""
    timed = [(side, precision) for precision, *_, sides in MODES.values() for side in sides]
    workers.start(*dict.fromkeys([*timed, *((side, precision) for precision in (FP32, BF16) for side in SIDES)]))
    rows: Rows = [{"name": "limits", **workers.ask("nest", FP32, do="limits")}]
    for batch in bench.batches:
        for side in SIDES:
            found = workers.ask(side, FP32, do="flops", batch=batch)
            rows.append({"name": "arithmetic", "side": side, "batch": list(batch), **found})
        rows += [_by_turns(bench, workers, name, batch) for name in MODES]
        for precision in (FP32, BF16):
            for side in SIDES:
                found = workers.ask(side, precision, do="parts", batch=batch)
                rows.append({"name": "parts", "side": side, "run": precision, "batch": list(batch), **found})
    return rows


def _by_turns(bench: Bench, workers: Workers, name: str, batch: tuple[int, float]) -> dict[str, Any]:
    """One after the other, and again, once where any kernel may be taken: medians of the step and its parts, and the
    most memory. What another side lacks is in its `error`, and the others' are timed."""
    precision, flags, tf32, sides = MODES[name]
    row: dict[str, Any] = {"name": name, "batch": list(batch)}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for side in [*sides] * (1 if flags == "free" else 2):
        if any("error" in answer for answer in found[side]):
            continue
        own = ("fast", True) if "numerics=fast" in TRAINERS[side][1] else (flags, tf32)
        order: dict[str, Any] = {"do": "steps", "warm": WARM.get(side, 2), "count": 6, "batch": batch}
        found[side].append(workers.ask(side, precision, **order, flags=own[0], tf32=own[1]))
        if side in SIDES and "error" in found[side][-1]:
            return {**row, "error": found[side][-1]["error"]}
    for side, answers in found.items():
        if "error" in answers[-1]:
            row[side] = {"error": answers[-1]["error"]}
            continue
        parts = ("step_ms", "forward_ms", "backward_ms", "optimizer_ms")
        row[side] = {part: statistics.median(answer[part] for answer in answers) for part in parts}
        row[side] |= {"steps_ms": [a["step_ms"] for a in answers], "peak_bytes": answers[-1]["peak_bytes"]}
    return row


def recorder(bench: Bench, workers: Workers) -> Rows:
    """Of each level steps recorded and bare ones before them; what the card copies and the disk writes beside it."""
    folder, batch = bench.folder / "recorder", bench.batches[0]
    rows: Rows = [{"name": "limits", **workers.ask("nest", FP32, folder, do="limits")}]
    for level, count in LEVELS.items():
        found = bare = workers.ask("nest", FP32, folder, do="steps", warm=2, count=4, batch=batch)
        if "error" not in bare:
            found = workers.ask("nest", FP32, folder, do="record", level=level, count=count, batch=batch)
        rows.append({"name": level, "batch": list(batch), "bare": bare.get("step_ms", 0) / 1000, **found})
    size = max((row["bytes"] for row in rows if "bytes" in row), default=0)
    if written := min(size, 1 << 30):
        rows[0]["write_gbs"] = written / seconds_to_write(bench.folder / "written", written) / 1e9
    return rows
