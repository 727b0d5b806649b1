"""When checkpoints are written: as Lightning's ModelCheckpoint decides, when a signal comes, and when time is up."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from nest_ssl.base.errors import InterruptedRun, UserError
from nest_ssl.train.checkpoint.checkpoint_io import remove_partial
from nest_ssl.train.lightning_internals import CheckpointCallback, TimeIsUp


class Checkpoints(CheckpointCallback):
    """Lightning's ModelCheckpoint, which also saves before it lets a signal or the clock stop training.

    SIGTERM, SIGINT and the time limit take effect behind the batch that is being trained or validated. The checkpoint
    written then is named and replaced like any other last one. A metric that is not known yet is left out of a file's
    name, where Lightning would write a perfect 0.

    Args:
        last_name: template of the last checkpoint's name.
        max_time: seconds that one run may train; None: no limit.
        settings: ModelCheckpoint's own.
    """

    def __init__(self, last_name: str, max_time: float | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.CHECKPOINT_NAME_LAST = last_name
        self._max_time, self._deadline = max_time, float("inf")
        self._asked: int | None = None  # the signal that asked to stop
        self._stopping = False

    # --- what is saved besides, so that a resumed run makes the same choices ---

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "dirpath": str(self.dirpath), "saved_at_step": self.saved_at_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.saved_at_step = state_dict.get("saved_at_step", 0)
        self.current_score = state_dict.get("current_score")  # which Lightning saves and does not load

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        before = self.saved_at_step
        if not self._stopping:  # a checkpoint of a stop takes no regular one's place
            self.saved_at_step = trainer.global_step  # Lightning sets it behind the file that holds it
        super()._save_checkpoint(trainer, filepath)
        if self._stopping:
            self.saved_at_step = before

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Lightning would keep what it resumed from, one file more with every resume."""
        return previous != current and Path(str(self.dirpath)) in Path(previous).absolute().parents

    def format_checkpoint_name(self, metrics: dict[str, Tensor], filename: str | None = None, ver: Any = None) -> str:
        name = filename or self.filename or ""
        for metric in re.findall(r"\{([^:}]+)", name):
            if metric not in metrics:
                name = re.sub(rf"([^-{{}}]*=)?\{{{re.escape(metric)}(:[^}}]*)?\}}-?", "", name).rstrip("-")
        return super().format_checkpoint_name(metrics, name, ver)

    def check_name(self, key: str) -> None:
        """Refuse a template that no name can be made of, now and not after the first validation.

        Args:
            key: of the setting, for the message.

        Raises:
            UserError: its format does not fit a number (or `epoch` and `step`, whole numbers).
        """
        for template in (str(self.filename), self.CHECKPOINT_NAME_LAST):
            names = re.findall(r"\{([^:}]+)", template)
            values = {name: torch.tensor(1 if name in ("epoch", "step") else 0.5) for name in names}
            try:
                name = self.format_checkpoint_name(values, template)
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
                fix = "Write it like {epoch}-{val_loss:.4f}."
                raise UserError("a file name that cannot be made", f"{key}={self.filename}: {error}", fix) from error
            if Path(name).parent != Path(str(self.dirpath)):
                fix = "Give exp_manager.checkpoint_callback_params.dirpath."
                raise UserError("a file name that names a folder", f"{key}={self.filename}", fix)

    # --- Lightning's hooks ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero:
            remove_partial(Path(str(self.dirpath)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._max_time is not None:
            self._deadline = time.monotonic() + self._max_time
        self._asked = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler ends training at the next batch's end without a checkpoint. It puts back what was
            # there before it when training ends. Who started us with SIGINT ignored, as a shell its jobs, means it.
            signal.signal(signal.SIGTERM, self._note)
            if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
                signal.signal(signal.SIGINT, self._note)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
        if not trainer.sanity_checking:
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last checkpoint is that of the last step, whatever the interval (as NeMo's)."""
        if not self.is_saved(trainer):
            self.save_last_now(trainer)

    # --- stopping ---

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one ends the process at once

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """Save and stop, if a signal came or time is up; of several ranks all stop behind the same batch.

        Raises:
            InterruptedRun: a signal came.
            TimeIsUp: Lightning then ends training as if it were done.
        """
        late = time.monotonic() >= self._deadline
        if trainer.world_size > 1:  # a signal comes to each at another moment: whoever stopped alone would wait
            asked = torch.tensor([self._asked or 0, late], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            number, late = asked.tolist()
            self._asked = number or None
        if self._asked is None and not late:
            return
        self._stopping = True
        self.save_last_now(trainer)
        saved = Path(self.last_model_path) if self.save_last else None
        if self._asked is None:
            raise TimeIsUp
        raise InterruptedRun(self._asked, saved)
