"""The recorder as a Lightning callback, the same for every trainer: which hook is which boundary of a `Session`.

Trainer(callbacks=[RecordingCallback("outputs/run", steps=[0, 1])]).fit(model)

`Recorder` alone leaves writer and end to the caller, who knows more: `recorder.finish(trainer=..., seed=42)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from nest_ssl.base.determinism import flags
from nest_ssl.record.digest_session import open_session
from nest_ssl.record.levels import ALL, Level
from nest_ssl.record.observers.learning_rates import Stepped, learning_rates
from nest_ssl.record.refusals import refuse_one_place
from nest_ssl.record.session import Mark
from nest_ssl.recording.evidence import Rates
from nest_ssl.recording.writer import RecordingWriter


class Recorder(Callback):
    """Writes a recording while a Lightning Trainer trains.

    Args:
        writer, steps, output_names, config, operators, level: as for `Session`.
        learning_rates: for how many optimizer steps to work out the rates, once training is over; 0: for none.
        stops: whether training ends behind the last step to record, though it was planned for more.
    """

    def __init__(
        self,
        writer: RecordingWriter,
        steps: frozenset[int] | None,
        output_names: Sequence[str],
        config: str = "{}\n",
        operators: bool | Sequence[str] = False,
        learning_rates: int = 0,
        stops: bool = False,
        level: Level = ALL,
    ) -> None:
        self.session = open_session(writer, steps, output_names, config, operators, level)
        self.session.unwatched = (LightningModule.log.__code__, LightningModule.log_dict.__code__)
        self._learning_rates = learning_rates
        self._optimizer_steps = 0
        self._logged: dict[str, torch.Tensor] = {}  # before the validation that is running
        self._last = max(steps) if steps and stops else None

    def mark_rng(self, moment: Mark) -> None:
        """Note the generators' states before or after the model is built."""
        self.session.mark(moment)

    def finish(self, **index: Any) -> None:
        """Complete the recording, see `Session.finish`."""
        self.session.finish(**index)

    # --- Lightning's hooks, in the order in which they come ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_one_place(trainer.world_size, self.session.writer.rank)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.session.initial_weights(pl_module)  # now: what this validation leaves behind is not what was built

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else None
        batches = trainer.num_training_batches * (epochs or float("inf"))
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        self.session.begin(pl_module, trainer.fit_loop.total_batch_idx + 1, batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._optimizer_steps = trainer.global_step
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        self.session.batch(batch, number, trainer.current_epoch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self.session.loss(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.session.backward_done()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        stepped = trainer.global_step > self._optimizer_steps
        workers = getattr(trainer.train_dataloader, "num_workers", None)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self.session.step_done(optimizer, stepped, workers, schedulers)
        if self._last in self.session.recorded:
            trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = dict(trainer.callback_metrics)
        self.session.validation()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.session.validation_batch(batch, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning keeps those of training beside them, the very tensors that they were before.
        logged = trainer.callback_metrics.items()
        self.session.validation_done({name: value for name, value in logged if value is not self._logged.get(name)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._learning_rates:
            configured = _rates(trainer, self._learning_rates)
            loop = trainer.fit_loop.epoch_loop
            planned, loop.max_steps = loop.max_steps, self._learning_rates
            longer = _rates(trainer, self._learning_rates)
            loop.max_steps = planned
            self.session.learning_rates(configured, longer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.session.abort()


class RecordingCallback(Recorder):
    """A recorder that needs nothing more: the recording is finished when `fit` is.

    Args:
        out: the recording's folder.
        steps: training batches to record, counted from 0; None records all.
        output_names, config, operators, level: as for `Session`.
        overwrite: whether an earlier recording there may be replaced.
        index: what else the recording should say, as of `record.loop.recording`.

    Raises:
        UserError: the folder must not be replaced or cannot be written.
    """

    def __init__(
        self,
        out: Path | str,
        *,
        steps: Iterable[int] | None = None,
        output_names: Sequence[str] = (),
        config: str = "{}\n",
        operators: bool | Sequence[str] = False,
        level: Level = ALL,
        overwrite: bool = False,
        **index: Any,
    ) -> None:
        asked = None if steps is None else frozenset(steps)
        super().__init__(RecordingWriter(out, overwrite), asked, output_names, config, operators, level=level)
        self._out, self._facts = Path(out), index

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        package = type(pl_module).__module__.partition(".")[0]
        described = {"name": self._out.name, "package": package, "version": ""}
        self.finish(**{"trainer": described, "flags": flags(), **self._facts})


def _rates(trainer: Trainer, steps: int) -> Rates:
    """Learning rates of the first optimizer, as the model configures it now; what trained is put back afterwards."""
    strategy = trainer.strategy
    trained = strategy.optimizers, strategy.lr_scheduler_configs
    strategy.setup_optimizers(trainer)
    optimizers, configs = strategy.optimizers, strategy.lr_scheduler_configs
    strategy.optimizers, strategy.lr_scheduler_configs = trained
    epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
    schedules = [
        Stepped(config.scheduler, None if config.reduce_on_plateau else config.frequency * epochs)
        for config in configs
        for epochs in [epoch if config.interval == "epoch" else 1]
    ]
    return learning_rates(optimizers[0], schedules, steps)
