"""The recorder as a Lightning callback, the same for every trainer.

    recorder = Recorder(RecordingWriter("outputs/nest"), steps=frozenset({0}), output_names=("log_probs", "tokens"))
    Trainer(callbacks=[recorder]).fit(model)
    recorder.finish(trainer={"name": "nest"}, seed=42)

It watches only the training batches asked for: on the others no hook is registered and nothing is copied. Random states
are read once more where the batch before one ends, since what is drawn from there on makes the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import to_builtins
from nest_ssl.base.rng import rng_digests
from nest_ssl.record.observers.calls import CallCapture, copy_to_cpu
from nest_ssl.record.observers.draws import Ledger
from nest_ssl.record.provenance import describe_device, describe_run
from nest_ssl.record.structure import describe_sources, describe_structure, qualified_name
from nest_ssl.recording import layout as files
from nest_ssl.recording.stages import (
    BACKWARD,
    FETCH,
    FIT_START,
    MODEL_CONSTRUCTION,
    OPTIMIZER_STEP,
    TRAINING_STEP,
    VALIDATION,
)
from nest_ssl.recording.writer import RecordingWriter

# What draws before a moment outside the steps; from the first moment on, all is accounted for.
_STAGE_BEFORE = {"after_model": MODEL_CONSTRUCTION, "before_first_batch": FIT_START}


class Recorder(Callback):
    """Writes the file contract of a recording while a Lightning Trainer trains.

    Args:
        writer: where to.
        steps: training batches to record, counted from 0; None records all.
        output_names: names for the outputs of the model's `forward`, in order.
        config: the resolved configuration as YAML text.
    """

    def __init__(
        self, writer: RecordingWriter, steps: frozenset[int] | None, output_names: Sequence[str], config: str = "{}\n"
    ) -> None:
        self.writer = writer
        self.steps = steps
        self.output_names = tuple(output_names)
        self.index: dict[str, Any] = {"steps": {}, "calls": {}, "rng": {}, **describe_run()}
        self._step: _StepInProgress | None = None
        self._run_ledger: Ledger | None = None
        self._ledger: Ledger | None = None  # of the step being recorded, or of the next one from the end of the last
        writer.save_text(files.CONFIG, config)

    def mark_rng(self, moment: str) -> None:
        """Note the generators' state at a named moment outside the steps, e.g. before the model is built."""
        self.index["rng"][moment] = rng_digests()
        if self._run_ledger is None:
            self._run_ledger = Ledger(moment)
            self.index["ledger"] = self._run_ledger.entries
        self._run_ledger.charge(_STAGE_BEFORE.get(moment, moment))

    def finish(self, **index: Any) -> None:
        """Complete the recording; `index` is added to `recording.json`.

        Raises:
            UserError: a step that was asked for was never reached, or the recording cannot be written.
        """
        missing = sorted((self.steps or frozenset()) - {int(step) for step in self.index["steps"]})
        if missing:
            trained = len(self.index["steps"])
            self.writer.abort()
            raise UserError(
                "a step to record was never reached",
                f"save_steps names {missing[0]}; {trained} of the named steps were trained",
                "Steps count from 0; train more batches or ask for fewer steps.",
            )
        self.writer.finish({**self.index, **index})

    # --- Lightning's hooks, in the order in which they come ---

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._refuse_unreachable_steps(trainer)
        self.mark_rng("before_first_batch")
        self.index["world_size"] = trainer.world_size
        self.index["device"] = describe_device(pl_module.device)
        self.index["model_class"] = qualified_name(pl_module)
        self.index["sources"] = describe_sources(pl_module)
        self.writer.save_builtins(files.STRUCTURE, describe_structure(pl_module))
        self.writer.save_tensors(files.INITIAL_WEIGHTS, weights(pl_module))
        self._await_batch(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._ledger:
            number = trainer.fit_loop.epoch_loop.total_batch_idx
            self._step = _StepInProgress(trainer, pl_module, number, batch, batch_idx, self._ledger)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        if self._step:
            self._step.loss = copy_to_cpu(loss)
            self._step.boundary("forward_done", BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._step:
            self._step.boundary("backward_done", OPTIMIZER_STEP)
            self.writer.save_tensors(f"{self._step.folder}/{files.GRADIENTS}", gradients(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._step:
            self._write(self._step, trainer, pl_module)
            self._step = None
        self._await_batch(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ledger:
            self._ledger.charge(VALIDATION)  # its loader has begun

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ledger:
            self._ledger.charge(VALIDATION)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.writer.abort()

    def _await_batch(self, trainer: Trainer) -> None:
        """Watch the generators from here on if the next batch is one to record."""
        number = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        self._ledger = Ledger(FETCH) if self.steps is None or number in self.steps else None

    def _write(self, step: _StepInProgress, trainer: Trainer, model: LightningModule) -> None:
        calls = step.capture.detach()
        step.boundary("step_done", FETCH)
        save, folder = self.writer.save_tensors, step.folder
        save(f"{folder}/{files.BATCH}", step.batch)
        save(f"{folder}/{files.FORWARD_OUTPUT}", self._forward_output(calls))
        save(f"{folder}/{files.LOSS}", {"loss": step.loss})
        save(f"{folder}/{files.WEIGHTS}", weights(model))
        save(f"{folder}/{files.OPTIMIZER}", optimizer_state(model, trainer.optimizers[0]))
        save(f"{folder}/{files.CALLS}", {"calls": calls})
        drawn = {"loader_workers": _loader_workers(trainer), "ledger": step.ledger.entries}
        self.writer.save_json(f"{folder}/{files.RNG}", step.rng | drawn)
        self.index["steps"][str(step.number)] = step.describe(trainer)
        self.index["calls"][str(step.number)] = [f"{call['module']}#{call['call']}" for call in calls]

    def _forward_output(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """The outputs of the root's first call, by name."""
        root = next((call for call in calls if call["module"] == ""), None)
        outputs = root["output"] if root else []
        outputs = outputs if isinstance(outputs, list) else [outputs]
        names = [*self.output_names, *(f"output_{i}" for i in range(len(self.output_names), len(outputs)))]
        return dict(zip(names, outputs, strict=False))  # a forward may return less than it is asked to name

    def _refuse_unreachable_steps(self, trainer: Trainer) -> None:
        """A step that training cannot reach is a mistake to be told now, not after hours."""
        self._refuse_past_steps(trainer.fit_loop.total_batch_idx + 1)
        batches = trainer.num_training_batches * (
            trainer.max_epochs if (trainer.max_epochs or -1) > 0 else float("inf")
        )
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        late = [step for step in sorted(self.steps or ()) if step >= batches]
        if late:
            raise UserError(
                "a step to record is never reached",
                f"save_steps names {late[0]}, training ends after {batches:,.0f} batches, counted from 0",
                "Train more batches (BATCHES, trainer.max_epochs, trainer.limit_train_batches) or ask for fewer steps.",
            )

    def _refuse_past_steps(self, behind: int) -> None:
        """A resumed run counts from the very beginning, and what is trained already cannot be recorded any more."""
        past = [step for step in sorted(self.steps or ()) if step < behind]
        if past:
            raise UserError(
                "a step to record is already trained",
                f"save_steps names {past[0]}, and this run goes on at {behind}",
                "Ask for later steps, or save_steps=none.",
            )


class _StepInProgress:
    """What is known so far of the step being recorded."""

    def __init__(
        self, trainer: Trainer, model: LightningModule, number: int, batch: Any, batch_idx: int, ledger: Ledger
    ) -> None:
        self.number = number
        self.ledger = ledger
        self.folder = files.step_folder(number, trainer.global_rank, trainer.world_size)
        self.rng: dict[str, dict[str, str]] = {}
        self.boundary("batch_ready", TRAINING_STEP)
        self.batch = to_builtins(batch, copy_to_cpu)
        self.loss: torch.Tensor | None = None
        self._place = {"epoch": trainer.current_epoch, "batch": batch_idx}
        self._optimizer_steps = trainer.global_step
        self.capture = CallCapture(model, ledger).attach()

    def boundary(self, moment: str, stage: str) -> None:
        """Note the generators' state at a moment of the step; `stage` is what draws from there on."""
        self.rng[moment] = rng_digests()
        self.ledger.enter(stage)

    def describe(self, trainer: Trainer) -> dict[str, Any]:
        stepped = trainer.global_step > self._optimizer_steps
        return {**self._place, "optimizer_stepped": stepped, "calls": len(self.capture.calls)}


def _loader_workers(trainer: Trainer) -> int | None:
    """How many processes beside this one load data, each with generators of its own that nobody watches."""
    return getattr(trainer.train_dataloader, "num_workers", None)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and every buffer (also those that a state_dict leaves out) by name, on the CPU."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().cpu() for name, tensor in named}


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    """The gradient of every trained parameter; None where backward reached none."""
    return {
        n: None if p.grad is None else p.grad.detach().cpu() for n, p in model.named_parameters() if p.requires_grad
    }


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, and its groups with the names of their parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    state = {names[id(p)]: dict(entries) for p, entries in optimizer.state.items()}
    return to_builtins({"state": state, "param_groups": groups}, lambda tensor: tensor.detach().cpu())
