"""Training that was stopped goes on with the same bits as training that was not.

Lightning restores weights, optimizer, schedule, precision and its counters. This adds what it lacks: the generators,
the gradients of a half accumulated step, the metrics that choose the best checkpoint, and counters that agree with each
other wherever in a batch the checkpoint was written. The loader restores its own place in the epoch
(`nest_ssl.data.loader`), as Lightning asks of it; where in a batch training goes on is the matter of its loop
(`lightning_internals.ResumableEpochLoop`). Of several processes each has generators, a loader and metrics of its own:
the first, which writes the file, gathers them.

Source of the behaviour: Lightning 2.4 `lightning.pytorch.loops`; NeMo 3.0.0 replaces the same loop for the same reason
(`nemo.utils.exp_manager.SkipResumeTrainingValidationLoop`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from nest_ssl.base.nested import ABSENT, leaves, pairs, to_builtins
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.train.checkpoint.checkpoint_io import KEY
from nest_ssl.train.checkpoint.nemo_archive import nemo_config
from nest_ssl.train.checkpoint.weights import plain_settings
from nest_ssl.train.lightning_internals import accumulates, begin_epoch_again

EXACT = "exact"  # numerics of checkpoints that do not say, NeMo's among them
OPTIMIZER = "optim."  # settings below it come back with the checkpoint's optimizer and schedule


def differing_settings(
    checkpoint: Mapping[str, Any], model: Mapping[str, Any], steps: float, ranks: int = 1, numerics: str = EXACT
) -> list[str]:
    """Lines about settings that are not those of the checkpoint, and which of the two holds.

    Args:
        checkpoint: its content.
        model: the `model` section of this run.
        steps: of the optimizer in this run, from the very beginning.
        ranks: processes that train in this run.
        numerics: of this run.
    """
    lines, kept = [], checkpoint.get(KEY, {})
    before, saved_by = kept.get("numerics", EXACT), len(kept.get("ranks", ())) or 1
    if before != numerics:
        what = f"numerics is {before} in the checkpoint and {numerics} in this run: this run's holds from here on"
        lines.append(f"{what}, and neither training throughout gives what comes of it")
    if saved_by != ranks:
        what = f"the checkpoint is of {saved_by} ranks and this run has {ranks}"
        lines.append(f"{what}: all go on with the generators of the first, so this is not the same training")
    if checkpoint.get("hyper_parameters"):
        saved = plain_settings(checkpoint["hyper_parameters"], "hyper_parameters").get("cfg")
        for name, old, new in pairs(dict(leaves(saved)), dict(leaves(nemo_config(model)))):
            if old is not ABSENT and new is not ABSENT and old != new:
                which = "the checkpoint's stays" if name.startswith(OPTIMIZER) else "this run's holds from here on"
                lines.append(f"model.{name} is {old} in the checkpoint and {new} in this run: {which}")
    own = ((model.get("optim") or {}).get("sched") or {}).get("max_steps")  # which a schedule prefers to epochs
    for schedule in checkpoint.get("lr_schedulers") or ():
        planned = schedule.get("max_steps") if isinstance(schedule, Mapping) else None
        if isinstance(planned, int) and planned > 0 and own is None and planned != steps:
            now = f"{steps:,.0f}" if steps != float("inf") else "no end"
            lines.append(f"the schedule stays planned for {planned:,} steps, as in the checkpoint; this run has {now}")
    return lines


class ExactState(Callback):
    """Saves and restores what Lightning does not. It must come before every callback that saves checkpoints."""

    def __init__(self) -> None:
        self._generators = generator_states()
        self._loaded: dict[str, Any] | None = None

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
        trained = pl_module.named_parameters()
        checkpoint[KEY] = {
            "generators": self._generators,
            "gradients": {n: p.grad for n, p in trained if p.grad is not None} if accumulates(trainer) else {},
            "metrics": dict(trainer.callback_metrics),
            "numerics": getattr(pl_module, "numerics", EXACT),  # NeMo's module has no choice
        }
        midst_of_validation = trainer.validating and not trainer.fit_loop.epoch_loop.validated
        _settle(checkpoint["loops"]["fit_loop"], midst_of_validation)
        if trainer.world_size > 1:
            place = {
                "callbacks": checkpoint.get("callbacks", {}),
                "loader": checkpoint["loops"]["fit_loop"]["state_dict"],
            }
            own = to_builtins({**checkpoint[KEY], **place}, lambda tensor: tensor.detach().cpu())
            ranks: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
            checkpoint[KEY]["ranks"] = ranks

    # --- resuming ---

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._loaded = checkpoint.get(KEY, {})
        ranks = self._loaded.get("ranks", ())
        if len(ranks) == trainer.world_size:  # before Lightning reads these two
            self._loaded = ranks[trainer.global_rank]
            checkpoint["callbacks"] = self._loaded["callbacks"]
            checkpoint["loops"]["fit_loop"]["state_dict"] = self._loaded["loader"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._generators = generator_states()
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        begin_epoch_again(trainer, loaded.get("metrics", {}))
        for name, parameter in pl_module.named_parameters():
            if name in loaded.get("gradients", {}):
                parameter.grad = loaded["gradients"][name].to(parameter.device)
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
    for loader in fit_loop["state_dict"].get("combined_loader", ()):  # of a stream Lightning takes one batch ahead
        loader["batches"] = min(loader["batches"], batches["current"]["ready"])
    begun = epochs["current"]["ready"]
    epochs["current"] = {"ready": begun, "started": begun, "processed": begun - 1, "completed": begun - 1}
    epochs["total"] = dict.fromkeys(epochs["total"], begun - 1)  # resuming counts the epoch as begun once more
    if midst_of_validation:  # it is run from its beginning
        validated = fit_loop["epoch_loop.val_loop.batch_progress"]
        validated["total"] = {key: count - validated["current"][key] for key, count in validated["total"].items()}
