"""What a person sees of a run: a progress bar, a line a validation, a line at the end; the rest is in a log file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tqdm import tqdm

from nest_ssl.base.errors import write_errors
from nest_ssl.data.skipping import SkippedAudio

BATCHES_A_LINE = 100  # where there is no terminal


class Progress(Callback):
    """On a terminal a bar over the training batches, elsewhere a line every so many; and a line a validation.

    Lightning's own bar writes wherever stdout then points, which is the log file.

    Args:
        console: what a person sees.
        name: of the trainer.

    Attributes:
        outputs: of the last training batch.
    """

    outputs: STEP_OUTPUT = None

    def __init__(self, console: TextIO, name: str) -> None:
        self._console, self._name = console, name
        self._bar: tqdm[Any] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        if self._console.isatty():
            total = trainer.num_training_batches
            self._bar = tqdm(
                total=int(total) if total != float("inf") else None,
                initial=trainer.fit_loop.batch_idx + 1 if trainer.fit_loop.restarting else 0,
                desc=f"{self._name} epoch {trainer.current_epoch}",
                unit="batch",
                file=self._console,
                dynamic_ncols=True,
                mininterval=0.5,
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        step, self.outputs = trainer.global_step, outputs
        if self._bar is not None:
            if self._bar.update():  # redrawn: reading the loss at every batch would make the host wait for the device
                self._bar.set_postfix(
                    {"step": step, "loss": loss_of(trainer, outputs), "lr": f"{_learning_rate(trainer):.3e}"}
                )
        elif (trainer.fit_loop.total_batch_idx + 1) % BATCHES_A_LINE == 0:
            self.say(f"step {step}: loss {loss_of(trainer, outputs)}, lr {_learning_rate(trainer):.3e}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            losses = _losses(trainer, "val_loss")
            self.say(f"step {trainer.global_step}: {losses}, lr {_learning_rate(trainer):.3e}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()  # when time is up, Lightning calls nothing else

    def say(self, line: str) -> None:
        """Write a line; a bar stays below it."""
        tqdm.write(f"{self._name} {line}", file=self._console)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def summary(trainer: Trainer, skipped: SkippedAudio | None, log: Path, outputs: STEP_OUTPUT = None) -> str:
    """A run in one line: steps, last losses, files left out, steps replayed, and where to read more.

    Args:
        trainer: after training.
        skipped: what was left out; None where that is not allowed.
        log: the file that everything else was written to.
        outputs: of the last training batch: its loss, for models that log the parts of it alone, as NeMo's with a list.
    """
    parts = [f"trained {trainer.global_step} steps", _losses(trainer, "train_loss", "val_loss")]
    if outputs is not None and "train_loss" not in trainer.callback_metrics:
        parts.insert(1, f"train_loss {loss_of(trainer, outputs)}")
    if skipped is not None:
        files = "1 audio file" if len(skipped.files) == 1 else f"{len(skipped.files)} audio files"
        parts.append(f"skipped {files} ({skipped.utterances} times)" if skipped.files else "skipped no audio file")
    if (graphed := getattr(trainer.lightning_module, "graphed", None)) is not None:
        parts.append(f"replayed {graphed.replayed} steps of {graphed.shapes} shapes")
    places = {str(Path(place)) for logger in trainer.loggers if (place := logger.log_dir or logger.save_dir)}
    parts.append("log: " + ", ".join([str(log), *sorted(places)]))
    return ", ".join(part for part in parts if part)


def _losses(trainer: Trainer, *endings: str) -> str:
    """The last value of every metric with a name that ends so, as text; nothing of those that were never logged."""
    metrics = trainer.callback_metrics
    named = [(name, float(value)) for end in endings for name, value in metrics.items() if name.endswith(end)]
    return ", ".join(f"{name} {value:.6f}" for name, value in named)


def loss_of(trainer: Trainer, outputs: STEP_OUTPUT) -> str:
    """The loss of a batch as text; Lightning hands it on as its part of the batches that are accumulated."""
    part = float(torch.as_tensor(outputs["loss"] if isinstance(outputs, dict) else outputs))
    return f"{part * trainer.accumulate_grad_batches:.6f}"


def _learning_rate(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[TextIO]:
    """Meanwhile all that is written to stdout and stderr, by libraries in C and child processes too, goes to `path`.

    Yields the console, for what a person should see. Loggers keep the stream that they were made with: it is the file
    behind that stream that changes.

    Raises:
        UserError: the file cannot be written.
    """
    with write_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("w", encoding="utf-8", buffering=1, errors="backslashreplace")
    with contextlib.ExitStack() as stack:
        stack.enter_context(log)
        console: TextIO = sys.stderr
        if (number := _number(console)) is not None:
            copy = os.fdopen(os.dup(number), "w", encoding=console.encoding, buffering=1, errors="backslashreplace")
            console = stack.enter_context(copy)
        for stream in (sys.stdout, sys.stderr):
            if (number := _number(stream)) is not None:
                stream.flush()
                before = os.dup(number)
                os.dup2(log.fileno(), number)
                stack.callback(os.close, before)  # called in the reverse order: flushed, put back, closed
                stack.callback(os.dup2, before, number)
                stack.callback(stream.flush)
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        yield console


def _number(stream: TextIO) -> int | None:
    """Its file descriptor; None for a stream without one, such as a notebook's."""
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
