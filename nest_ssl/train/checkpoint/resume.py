"""Training that was stopped goes on with the same bits as training that was not.

Lightning restores weights, optimizer, schedule, precision and its counters. This adds what it lacks: the generators,
the gradients of a half accumulated step, the metrics that choose the best checkpoint, and counters that agree with each
other wherever in a batch the checkpoint was written. The loader restores its own place in the epoch
(`nest_ssl.data.loader`), as Lightning asks of it. This holds for one process; several would each go on with the
generators of the first.

Source of the behaviour: Lightning 2.4 `lightning.pytorch.loops`; NeMo 3.0.0 replaces the same loop for the same reason
(`nemo.utils.exp_manager.SkipResumeTrainingValidationLoop`).
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.types import STEP_OUTPUT

from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.train.checkpoint.checkpoint_io import KEY


class ResumableEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, which knows how far into its last batch a checkpoint was written.

    Lightning's own runs a validation again that the checkpoint already has behind it, and forgets one when the batch
    that it resumes with is followed by another.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, trainer.min_steps, trainer.max_steps)
        self.validated = True  # whether the validation that follows the last batch, if any, is done
        self._closed = True  # whether the loggers' step has moved on behind the last batch
        self._validation_is_owed = False

    def on_save_checkpoint(self) -> dict[str, Any]:
        return {**super().on_save_checkpoint(), "validated": self.validated, "closed": self._closed}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self.validated, self._closed = state_dict.get("validated", True), state_dict.get("closed", True)

    @property
    def _is_validation_done(self) -> bool:
        return not self._validation_is_owed

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        if self.restarting:
            self.val_loop.restarting = False  # a validation starts at its beginning
            self._validation_is_owed = not self.validated and self._should_check_val_fx(data_fetcher)
            if not (self._closed or self._validation_is_owed):
                self._close_batch()

    def advance(self, data_fetcher: _DataFetcher) -> None:
        self._restarting = False
        if not self._validation_is_owed:  # else the batch is trained, and `on_advance_end` goes on with it
            self.validated = self._closed = False
            super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        self._validation_is_owed = False
        super().on_advance_end(data_fetcher)
        self._closed = True

    def _close_batch(self) -> None:
        if not self._should_accumulate():
            self._batches_that_stepped += 1
        self._closed = True


class ExactState(Callback):
    """Saves and restores what Lightning does not. It must come before every callback that saves checkpoints."""

    def __init__(self) -> None:
        self._generators = generator_states()
        self._loaded: dict[str, Any] | None = None
        self.batches_before = 0  # training batches behind the checkpoint that was resumed from

    # --- saving ---

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        # Noted now, for a checkpoint may still be asked for in the midst of the validation that follows.
        self._generators = generator_states()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._generators = generator_states()
            trainer.fit_loop.epoch_loop.validated = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {
            "generators": self._generators,
            "gradients": _gradients(pl_module) if trainer.fit_loop._should_accumulate() else {},
            "metrics": dict(trainer.callback_metrics),
        }
        midst_of_validation = trainer.validating and not trainer.fit_loop.epoch_loop.validated
        _settle(checkpoint["loops"]["fit_loop"], midst_of_validation)

    # --- resuming ---

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get(KEY, {})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._generators = generator_states()
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        self.batches_before = trainer.fit_loop.total_batch_idx + 1
        _begin_epoch_again(trainer)
        for name, parameter in pl_module.named_parameters():
            if name in loaded.get("gradients", {}):
                parameter.grad = loaded["gradients"][name].to(parameter.device)
        trainer._logger_connector._callback_metrics.update(loaded.get("metrics", {}))
        if "generators" in loaded:
            restore_generators(loaded["generators"])
        self._generators = generator_states()


def _settle(fit_loop: dict[str, Any], midst_of_validation: bool) -> None:
    """Make Lightning's counters agree: the batch is done, and its epoch is not.

    Within the hooks that save checkpoints some have moved and others have not, and Lightning then repeats a batch, or
    trains an epoch short. One form for all: what is left of the epoch, which may be nothing, is done after resuming.
    """
    batches, epochs = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]
    for counters in (batches["total"], batches["current"]):
        counters["completed"] = counters["processed"] = counters["ready"]
    begun = epochs["current"]["ready"]
    epochs["current"] = {"ready": begun, "started": begun, "processed": begun - 1, "completed": begun - 1}
    epochs["total"] = dict.fromkeys(epochs["total"], begun - 1)  # resuming counts the epoch as begun once more
    if midst_of_validation:  # it is run from its beginning
        validated = fit_loop["epoch_loop.val_loop.batch_progress"]
        validated["total"] = {key: count - validated["current"][key] for key, count in validated["total"].items()}


def _gradients(model: LightningModule) -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _begin_epoch_again(trainer: Trainer) -> None:
    """Give the loader its place in the epoch. Lightning does so only where it has not made the batches' iterator yet,
    which it has to count the steps for a schedule."""
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)
