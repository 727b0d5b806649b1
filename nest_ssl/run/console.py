"""What a person sees of a run: a progress bar, a line a validation, a line at the end; the rest is in a log file."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tqdm import tqdm

from nest_ssl.base.errors import from_os_error
from nest_ssl.data.skipping import SkippedAudio


class Progress(Callback):
    """A bar over the training batches with step, last loss and learning rate, and a line a validation, on `console`.

    Lightning's own bar writes wherever stdout then points, which is the log file.
    """

    def __init__(self, console: TextIO, name: str) -> None:
        self._console, self._name = console, name
        self._bar: tqdm[Any] | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
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
        assert self._bar is not None
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        rate = f"{_learning_rate(trainer):.3e}"
        loss = f"{float(torch.as_tensor(loss)):.6f}"
        self._bar.set_postfix(step=trainer.global_step, loss=loss, lr=rate, refresh=False)
        self._bar.update()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            losses = _losses(trainer, "val_loss")
            line = f"{self._name} step {trainer.global_step}: {losses}, lr {_learning_rate(trainer):.3e}"
            tqdm.write(line, file=self._console)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def summary(trainer: Trainer, skipped: SkippedAudio | None, log: Path) -> str:
    """A run in one line: steps, last losses, files left out, and where to read more.

    Args:
        trainer: after training.
        skipped: what was left out; None where that is not allowed.
        log: the file that everything else was written to.
    """
    parts = [f"trained {trainer.global_step} steps", _losses(trainer, "train_loss", "val_loss")]
    if skipped is not None:
        files = "1 audio file" if len(skipped.files) == 1 else f"{len(skipped.files)} audio files"
        parts.append(f"skipped {files} ({skipped.utterances} times)" if skipped.files else "skipped no audio file")
    places = {str(Path(place)) for logger in trainer.loggers if (place := logger.log_dir or logger.save_dir)}
    parts.append("log: " + ", ".join([str(log), *sorted(places)]))
    return ", ".join(part for part in parts if part)


def _losses(trainer: Trainer, *endings: str) -> str:
    """The last value of every metric whose name ends so, as text; nothing of those that were never logged."""
    metrics = trainer.callback_metrics
    named = [(name, float(value)) for end in endings for name, value in metrics.items() if name.endswith(end)]
    return ", ".join(f"{name} {value:.6f}" for name, value in named)


def _learning_rate(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


@contextlib.contextmanager
def noise_to_file(path: Path) -> Iterator[TextIO]:
    """Meanwhile stdout, stderr and every logger write to `path`; yields the console, for what a person should see.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    console = sys.stderr
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        moved = [
            handler for handler in _stream_handlers() if handler.stream in (sys.__stdout__, sys.__stderr__, console)
        ]
        for handler in moved:
            handler.setStream(log)
        try:
            yield console
        finally:
            for handler in _stream_handlers():  # also those that libraries made meanwhile
                if handler in moved or handler.stream is log:
                    handler.setStream(console)


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    """Handlers that hold a stream of their own (some only look up sys.stderr, and files are files)."""
    loggers = [logging.root, *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}
    streams = [h for h in handlers.values() if isinstance(h, logging.StreamHandler) and "stream" in vars(h)]
    return [h for h in streams if not isinstance(h, logging.FileHandler)]
