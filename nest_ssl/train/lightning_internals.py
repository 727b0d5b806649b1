"""Every private name of Lightning that resuming, checkpoints and repeated steps lean on, under public names.

Lightning promises nothing about them, so another release fails here, at import, and not in the midst of training.
Read in Lightning 2.4.0: `loops.training_epoch_loop`, `loops.fit_loop`, `loops.optimization.automatic`,
`callbacks.model_checkpoint`, `trainer.connectors.logger_connector`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import _TunerExitException

from nest_ssl.base.errors import UserError

RELEASES = ("2.4.0",)  # in which the names below mean what is written beside them
USED = {
    _TrainingEpochLoop: ("_should_check_val_fx", "_should_accumulate", "_is_validation_done", "advance",
                         "_build_kwargs"),
    ModelCheckpoint: ("_save_checkpoint", "_save_last_checkpoint", "_monitor_candidates", "_should_remove_checkpoint",
                      "_should_skip_saving_checkpoint"),
    _FitLoop: ("_should_accumulate", "_load_combined_loader_states"),
}  # fmt: skip

Counters = Any  # of batches: ready, started and done
TimeIsUp = _TunerExitException  # raised in a hook, it ends training as if it were done


def check_release(installed: str = lightning.__version__) -> None:
    """Refuse a Lightning that was not read.

    Raises:
        UserError: another release, or one that lacks a name used here.
    """
    lacking = [f"{cls.__name__}.{name}" for cls, names in USED.items() for name in names if not hasattr(cls, name)]
    if installed not in RELEASES or lacking:
        where = f"lightning {installed}" + (f" (without {lacking[0]})" if lacking else "")
        fix = f"Install lightning=={RELEASES[-1]}: make setup."
        raise UserError("a release of Lightning that checkpoints and resuming were not tried with", where, fix)


check_release()


class ResumableEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which knows how far into its last batch a checkpoint was written.

    Lightning's own runs a validation again that the checkpoint already has behind it, and forgets one when the batch
    that it resumes with is followed by another.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, trainer.min_steps, trainer.max_steps)
        self.validated = True  # whether the validation that follows the last batch, if any, is done
        self._closed = True  # whether the loggers' step has moved on behind the last batch
        self._owed = False  # whether a checkpoint was written between a batch and the validation that follows it

    @property
    def _is_validation_done(self) -> bool:  # Lightning's own forgets a validation, or runs it twice
        return not self._owed

    def on_save_checkpoint(self) -> dict[str, Any]:
        return {**super().on_save_checkpoint(), "validated": self.validated, "closed": self._closed}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.validated, self._closed = state_dict.get("validated", True), state_dict.get("closed", True)

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        if self.restarting:
            self.val_loop.restarting = False  # a validation starts at its beginning
            self._owed = not self.validated and self._should_check_val_fx(data_fetcher)
            if not (self._closed or self._owed):
                if not self._should_accumulate():
                    self._batches_that_stepped += 1
                self._closed = True

    def advance(self, data_fetcher: _DataFetcher) -> None:
        self._restarting = False
        if not self._owed:  # else the batch is trained, and `on_advance_end` goes on with it
            self.validated = self._closed = False
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        self._owed = False
        super().on_advance_end(data_fetcher)
        self._closed = True


class CheckpointCallback(ModelCheckpoint):
    """Lightning's ModelCheckpoint; what a subclass needs of its inside."""

    @property
    def saved_at_step(self) -> int:
        """The optimizer step of the last checkpoint; the same step is not saved twice."""
        return self._last_global_step_saved

    @saved_at_step.setter
    def saved_at_step(self, step: int) -> None:
        self._last_global_step_saved = step

    def save_last_now(self, trainer: Trainer) -> None:
        """Write the last checkpoint, whatever the interval."""
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def is_saved(self, trainer: Trainer) -> bool:
        """Whether nothing was trained since the last checkpoint (or nothing is saved at all now)."""
        return self._should_skip_saving_checkpoint(trainer)


def accumulates(trainer: Trainer) -> bool:
    """Whether the gradients of the last batch wait for the next one's."""
    return trainer.fit_loop._should_accumulate()


def begin_epoch_again(trainer: Trainer, metrics: Mapping[str, Any]) -> None:
    """Put back `trainer.callback_metrics`, and give the loader its place in the epoch. Lightning does the latter only
    where it has not made the batches' iterator yet, which it has to count the steps for a schedule."""
    trainer._logger_connector._callback_metrics.update(metrics)
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._data_fetcher is not None:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)


def counters(trainer: Trainer) -> Counters:
    """A copy of the counters of batches; where gradients accumulate they say whether the optimizer makes a step."""
    return copy.deepcopy(trainer.fit_loop.epoch_loop.batch_progress)


def train_again(trainer: Trainer, batch: Any, position: int, progress: Counters) -> None:
    """Train on a batch once more: forward, backward, clipping and, unless gradients accumulate, the optimizer's step.

    Hooks around these are called; the schedule, the counters and all that was logged stay as they are.

    Args:
        position: of the batch in its epoch.
        progress: from `counters`, when the batch was first trained.
    """
    loop = trainer.fit_loop.epoch_loop
    optimization = loop.automatic_optimization
    kept = loop.batch_progress, optimization.optim_progress, loop._results
    loop.batch_progress, optimization.optim_progress = copy.deepcopy((progress, kept[1]))
    loop._results = type(kept[2])(training=True)  # logged values go there
    try:
        arguments = loop._build_kwargs(OrderedDict(), batch, position)
        optimization.run(trainer.optimizers[0], position, arguments)
    finally:
        loop.batch_progress, optimization.optim_progress, loop._results = kept
