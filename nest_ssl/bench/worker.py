"""One trainer in a process of its own, training on a constant batch and doing what it is asked, line by line.

    python -m nest_ssl.bench.worker scripts/train_nest.py [--record FOLDER] [SWITCH ...] key=value ...

It reads orders (one JSON object a line) from stdin and answers each on stdout. Both trainers run in Lightning's own
loop, so that what is measured is what training does; the batch lies on the device before it starts.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

from nest_ssl.run.allocator import keep_freed_memory
from nest_ssl.run.importing import importing

with importing():  # as a training does
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer

    from nest_ssl.base.determinism import seed_all, set_determinism
    from nest_ssl.base.errors import UserError, run_command
    from nest_ssl.bench import loading, orders
    from nest_ssl.bench.orders import Moments
    from nest_ssl.bench.profiled import Profiled
    from nest_ssl.bench.workers import GIVEN_BACK, LEVELS, NO_TYPE_CHECKS, SWITCHES, WITHOUT_STATE
    from nest_ssl.config.compose import data_paths
    from nest_ssl.data.batch import AudioNoiseBatch
    from nest_ssl.record.levels import Level
    from nest_ssl.record.lightning import Recorder
    from nest_ssl.recording import layout
    from nest_ssl.recording.layout import CALLS, step_folder
    from nest_ssl.recording.writer import RecordingWriter
    from nest_ssl.run.command_line import read_command_line
    from nest_ssl.run.experiment import FORWARD_OUTPUTS, build_trainer
    from nest_ssl.run.preflight import check_data, check_settings
    from nest_ssl.run.subject import Subject

ENDLESS = 10**6  # batches an epoch has: orders end it, not their number


class Finished(Exception):
    """No order is left."""


class Conductor(Callback):
    """Between two batches reads an order and does it, on a batch or on several; it is the training data as well.

    Args:
        lines: orders, each a line of JSON.
        answers: where a line goes for each.
        recorders: by level, each watches the steps that an order asks to record.
    """

    def __init__(
        self, lines: TextIO, answers: TextIO, recorders: Mapping[str, Recorder] = MappingProxyType({})
    ) -> None:
        self._lines, self._answers, self._recorders = lines, answers, recorders
        self.trainer: Trainer | None = None
        self.moments = Moments(torch.device("cpu"))
        self.order: dict[str, Any] = {}
        self._found: dict[str, Any] = {}
        self._losses: list[torch.Tensor] | None = None
        self._profiled: Profiled | None = None

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[AudioNoiseBatch]:
        """The batches of one order after another."""
        assert self.trainer is not None
        model = self.trainer.lightning_module
        self.moments = Moments(model.device)
        for line in self._lines:
            self.order, self._found = json.loads(line), {}
            orders.set_flags(self.order.get("flags", "deterministic"), self.order.get("tf32", False))
            if self.order["do"] in ("ready", "limits"):
                self._answer(orders.limits(model.device) if self.order["do"] == "limits" else {})
                continue
            if self.order["do"] == "load":
                self._answer(loading.load(model.train_dataloader(), self.order["count"]))
                continue
            if self.order["do"] == "curve":
                losses: list[torch.Tensor] = []
                self._losses = losses
                yield from itertools.islice(_endless(model.train_dataloader()), self.order["count"])
                self._losses = None
                self._answer({"losses": torch.stack(losses).tolist()})
                continue
            batch = orders.constant_batch(model.device, *self.order["batch"])
            if self.order["do"] == "record":
                yield batch
                yield from self._recorded(batch, self.order.get("level", "modules"), self.order.get("count", 1))
            elif self.order["do"] == "profile":
                yield batch
                with Profiled(model, self.order["inside"]) as self._profiled:
                    yield batch
                self._found, self._profiled = dict(self._profiled.found()), None
            else:
                warm, clock = self.order.get("warm", 0), []
                self.moments.begin(warm)
                for _ in range(warm + self.order.get("count", 1)):
                    started = self.moments.wall()
                    yield batch
                    clock.append(self.moments.wall() - started)
                self._found = {**self.moments.end(), "clock": statistics.median(clock[warm:]), **self._found}
            del batch
            self._answer(self._found)
        raise Finished

    def _recorded(self, batch: AudioNoiseBatch, level: str, count: int) -> Iterator[AudioNoiseBatch]:
        """So many steps recorded, and a last one in which it is counted where the host waits for the device."""
        assert self.trainer is not None
        session, number = self._recorders[level].session, self.trainer.fit_loop.total_batch_idx + 1
        session.steps = frozenset(range(number + 1, number + 2 + count))
        yield batch
        steps = []
        for step in range(number + 1, number + 1 + count):
            orders.wait(self.moments.device)
            started, computed, own = self.moments.wall(), time.process_time(), time.thread_time()
            yield batch
            orders.wait(self.moments.device)
            ended, own = self.moments.wall(), time.thread_time() - own
            session.writer.wait()
            folder = session.writer.folder / step_folder(step)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            (folder / CALLS).unlink(missing_ok=True)  # most of the bytes; the next step is compared with the others
            found = {"seconds": ended - started, "written": self.moments.wall() - started, "bytes": size}
            found |= {
                "thread": own,
                "cpu": time.process_time() - computed,
                "peak": orders.peak_bytes(self.moments.device) or 0,
            }
            steps.append(found)
        with orders.warnings_by_place(set()) as places:
            yield batch
        session.writer.wait()
        (session.writer.folder / step_folder(number + 1 + count) / CALLS).unlink(missing_ok=True)
        session.steps = frozenset()
        each = [(found["written"], found["bytes"], found["peak"]) for found in steps]
        self._found = {**steps[-1], "first": steps[0]["seconds"], "each": each, "waits": places.most_common(8)}

    def _answer(self, found: dict[str, Any]) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(json.dumps(found), file=self._answers, flush=True)

    # --- Lightning's hooks ---

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = pl_module.training_step

        def training_step(batch: AudioNoiseBatch, batch_idx: int) -> Any:
            doing = orders.INSIDE.get(self.order["do"])
            if doing is not None:
                self._found = doing(pl_module, step, batch, batch_idx, self.order)
            return step(batch, batch_idx)

        pl_module.training_step = training_step  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._mark("start")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._mark("forward")
        if self._losses is not None:
            self._losses.append(loss.detach())

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._mark("end")

    def _mark(self, moment: str) -> None:
        self.moments.mark(moment)
        if self._profiled is not None:
            self._profiled.mark(moment)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def without_state(save: Callable[..., None]) -> Callable[..., None]:
    """A session's `_save` that leaves out what a step starts from and what it leaves; it is not even copied."""
    left_out = {layout.STEP_START, layout.OPTIMIZER_START, layout.APPLIED_GRADIENTS, layout.WEIGHTS, layout.OPTIMIZER}
    return lambda name, *made, **how: None if name in left_out else save(name, *made, **how)


def main() -> int:
    """Train until stdin ends; returns the exit code."""
    script, *overrides = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    folder = None
    if overrides[:1] == ["--record"]:
        folder, overrides = Path(overrides[1]), overrides[2:]
    switches = {word for word in overrides if word in SWITCHES}
    overrides = [word for word in overrides if word not in switches]
    subject = next(value for value in runpy.run_path(script).values() if isinstance(value, Subject))
    cfg = read_command_line(subject.name, overrides)
    check_settings(subject, cfg)
    checked = data_paths(cfg)
    inputs, *_ = check_data(subject, checked)
    if GIVEN_BACK not in switches and not keep_freed_memory() and sys.platform == "linux":
        fix = "Unset MALLOC_TRIM_THRESHOLD_ and what else is set of it."
        raise UserError("the allocator is not as the page says", "environment variables of glibc's", fix)
    with importing():
        subject.load()
    if NO_TYPE_CHECKS in switches:  # NeMo's own switch; the port has none
        sys.modules["nemo.core.classes.common"].typecheck.set_typecheck_enabled(False)
    set_determinism()
    recorders = {}
    for level in LEVELS if folder is not None else ():
        writer = RecordingWriter(Path(folder or "", level), overwrite=True)
        chosen = Level("boundaries" if level == WITHOUT_STATE else level)  # type: ignore[arg-type]
        recorders[level] = Recorder(writer, frozenset(), FORWARD_OUTPUTS, level=chosen)
    if WITHOUT_STATE in recorders:
        session = recorders[WITHOUT_STATE].session
        session._save = without_state(session._save)  # type: ignore[method-assign]
    conductor = Conductor(sys.stdin, answers, recorders)
    trainer = conductor.trainer = build_trainer(checked, [conductor, *recorders.values()], limit_val_batches=0)
    seed_all(cfg.seed)
    model = subject.build_model(checked, trainer, inputs)
    try:
        trainer.fit(model, train_dataloaders=conductor)
    except Finished:
        return 0
    return 1


if __name__ == "__main__":
    run_command(main)
