"""Trains recorded steps again, with what rounding may change changed, and writes how far every tensor moves.

A chain of recorded steps is repeated as a whole, for what rounding did to the optimizer's state in the first is still
there in the second. Each repeat starts from the state in which the chain began; in every step of it weights, buffers
and audio are one ulp away for forward and backward. The optimizer then meets the weights as they were: another trainer,
too, starts from the same ones, and one ulp of a weight may be more than a step of warm-up changes. Generators are put
where they were at each batch. The first repeat moves nothing at all and must give the recorded bits: so a recorded step
can be restarted, and the other repeats differ by rounding alone.

A repeat in which a token became another one says what that does. It is trained once more with the recorded tokens, and
then says what rounding does to all that is behind them.

Afterwards weights, optimizer, gradients, generators, counters and logged values are the bits that they were.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from nest_ssl.base.files import write_atomically
from nest_ssl.base.nested import to_builtins
from nest_ssl.base.rng import restore_generators
from nest_ssl.base.safe_load import load_tensors
from nest_ssl.compare.bits import same_bits
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.copies import Copies
from nest_ssl.record.observers.parameters import gradients, optimizer_state, weights
from nest_ssl.record.session import WATCHED, Session
from nest_ssl.recording import layout
from nest_ssl.recording.evidence import (
    NOISE_FLOOR,
    UNBOUND,
    VALIDATION_FLOOR,
    NoiseFloor,
    ValidationFloor,
    write_evidence,
)
from nest_ssl.run.floor.deviations import Tally
from nest_ssl.run.floor.evaluation import EvaluationFloor
from nest_ssl.run.floor.margins import Margins
from nest_ssl.run.floor.state import (
    SavedBatch,
    SavedState,
    copied,
    live_weights,
    move_by_one_ulp,
    tensors_of,
    write_settings,
)
from nest_ssl.run.floor.values import StepValues, recorded_values
from nest_ssl.train.lightning_internals import train_again

HELD_OUT = 2  # further repeats, which check the floor
LONGEST = 16  # steps of a chain; another one begins with a state of its own
Weights = dict[str, Tensor]


class _RecordedStep:
    """A recorded step, what its repeats did, and what the recorder's files do not hold of it.

    Args:
        folder: of the step.
        before: weights and buffers at its start.
    """

    def __init__(self, folder: Path, before: Weights, model: LightningModule) -> None:
        self._folder, self._before = folder, before
        self._edited: dict[str, Tensor | None] = {}
        self._recorded: StepValues | None = None  # mapped from the disk, once it is all there
        self._buffers = {name for name, _ in model.named_buffers()}
        self.tally, self.kept = Tally(), 0

    def done(self, model: LightningModule) -> None:
        """Keep the gradients that clipping, or whatever else stands before the optimizer, has changed."""
        recorded = load_tensors(self._folder / layout.GRADIENTS, mapped=True)
        for name, gradient in on_cpu(gradients(model)).items():
            if gradient is not None and (recorded[name] is None or not same_bits(gradient, recorded[name])):
                self._edited[name] = gradient.clone()

    def add(
        self, repeat: _Repeat, model: LightningModule, optimizer: torch.optim.Optimizer, held_out: bool, behind: bool
    ) -> bool:
        """Compare what a repeat left with what was recorded; arguments and answer as of `Tally.add`."""
        recorded = self._recorded or recorded_values(self._folder, self._edited, self._before, self._buffers)
        self._recorded = recorded
        values = repeat.values(model, optimizer, list(recorded.outputs), self._buffers)
        return self.tally.add(recorded, values, held_out, behind)

    def write(self, number: int, since: int, repeats: int, seconds: float, margins: Margins) -> None:
        floor = NoiseFloor(
            reference=UNBOUND,
            seconds=seconds,
            step=number,
            repeats=repeats,
            held_out=HELD_OUT,
            since=since,
            flipped=sum(self.tally.flipped),
            kept=self.kept,
            making=len(self.tally.making),
            restart_compared=self.tally.compared,
            restart_differing=self.tally.differing[0],
            entries=self.tally.entries(),
            margins=margins.found(),
        )
        write_atomically(self._folder / NOISE_FLOOR, floor.model_dump_json(by_alias=True, indent=1) + "\n")


@dataclass
class _Chain:
    """Steps that are repeated together: the state in which the first began, all batches, and the recorded ones."""

    first: int
    start: SavedState
    batches: list[SavedBatch] = field(default_factory=list)
    margins: list[Margins] = field(default_factory=list)  # of each batch
    recorded: dict[int, _RecordedStep] = field(default_factory=dict)


class _Repeat:
    """A step that is being trained again.

    Args:
        batch: its own copy, to be moved.
        generator: what to move by; None: nothing is moved.
    """

    def __init__(self, model: LightningModule, batch: object, generator: torch.Generator | None) -> None:
        self.calls = CallObserver(model, copies=_CopiesOnCPU)
        self._loss = torch.tensor(0.0)
        self._gradients: dict[str, Tensor | None] = {}
        self._before = copied(live_weights(model))
        self._moved_buffers: Weights = {}  # as the forward met them
        self._moved = generator is not None
        if generator is not None:
            move_by_one_ulp([*live_weights(model).values(), *tensors_of(batch)], generator)
            self._moved_buffers = copied(dict(model.named_buffers()))

    def loss_reached(self, loss: Tensor) -> None:
        self._loss = loss.detach().cpu().clone()
        self.calls.loss_reached()

    @torch.no_grad()
    def backward_done(self, model: LightningModule) -> None:
        """Keep the gradients; take back what was moved, but for buffers that the forward has changed since."""
        self._gradients = {n: None if g is None else g.clone() for n, g in on_cpu(gradients(model)).items()}
        for name, tensor in live_weights(model).items() if self._moved else ():
            met = self._moved_buffers.get(name)
            if met is None or same_bits(tensor, met):
                tensor.copy_(self._before[name])

    def values(
        self, model: LightningModule, optimizer: torch.optim.Optimizer, outputs: list[str], buffers: set[str]
    ) -> StepValues:
        """What the step computed and left; `outputs` are the names of the model's."""
        calls = self.calls.detach()
        root = next(call.output for call in calls if call.module == "")
        return StepValues(
            calls,
            dict(zip(outputs, root if isinstance(root, list) else [root], strict=False)),
            {"loss": self._loss},
            self._gradients,
            on_cpu(gradients(model)),
            on_cpu(self._before),
            on_cpu(weights(model)),
            on_cpu(optimizer_state(model, optimizer)["state"]),
            buffers,
        )


class _CopiesOnCPU(Copies):
    """What is compared with files comes to the CPU at once, wherever it is computed."""

    def _has_room(self, tensor: Tensor) -> bool:
        return False


def on_cpu(value: Any) -> Any:
    """Nested tensors where recorded ones are."""
    return to_builtins(value, lambda tensor: tensor.cpu())


class NoiseFloorRepeats(Callback):
    """Repeats every recorded step; it must come behind the recorder, whose files it reads.

    Args:
        session: the recorder's.
        repeats: how many make the floor; `HELD_OUT` more check it.
        say: takes a line about the progress.
    """

    def __init__(self, session: Session, repeats: int, say: Callable[[str], None]) -> None:
        self._session, self._repeats, self._say = session, repeats, say
        self._chain: _Chain | None = None
        self._repeat: _Repeat | None = None  # the step that is being trained again, if one is
        self._validations, self._evaluation = 0, EvaluationFloor(repeats, HELD_OUT)

    # --- Lightning's hooks: those of training, and in the midst of a repeated step ---

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        number, steps = trainer.fit_loop.epoch_loop.total_batch_idx, self._session.steps
        recorded = steps is None or number in steps
        if self._chain is None and recorded:
            self._chain = _Chain(number, SavedState.take(trainer, pl_module, lasting=True))
        if self._chain is None:
            return
        if recorded:
            folder = self._session.writer.folder
            left = folder / layout.step_folder(number - 1) / layout.WEIGHTS  # by the step before, if it was recorded
            before = load_tensors(left, mapped=True) if left.exists() else copied(on_cpu(weights(pl_module)))
            self._chain.recorded[number] = _RecordedStep(folder / layout.step_folder(number), before, pl_module)
        self._chain.batches.append(SavedBatch.take(trainer, number, batch, batch_idx))
        self._chain.margins.append(Margins(pl_module))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._repeat:
            self._repeat.loss_reached(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._repeat:
            self._repeat.backward_done(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        chain, steps = self._chain, self._session.steps
        if chain is None:
            return
        number = chain.batches[-1].number
        if number in chain.recorded:
            self._session.writer.wait(hashed=False)  # its files are read from here on
            chain.recorded[number].done(pl_module)
        later = range(number + 1, chain.first + LONGEST)
        if not later or (steps is not None and not steps.intersection(later)):
            self._repeat_chain(trainer, pl_module, chain)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._chain:  # where all steps are recorded, only now it is known that these were the last
            self._repeat_chain(trainer, pl_module, self._chain)

    # --- what validations make before any weight ---

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and self._validations < WATCHED and self._session.steps != frozenset():
            self._evaluation.attach(pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        self._evaluation.detach()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validations += 1
        started = time.perf_counter()
        if entries := self._evaluation.measure(trainer, pl_module):
            floor = ValidationFloor(
                reference=UNBOUND, repeats=self._repeats, entries=entries, seconds=time.perf_counter() - started
            )
            write_evidence(self._session.writer.folder / VALIDATION_FLOOR, floor)

    # --- the repeats ---

    @torch.no_grad()
    def _repeat_chain(self, trainer: Trainer, model: LightningModule, chain: _Chain) -> None:
        self._chain, started = None, time.perf_counter()
        after, total = SavedState.take(trainer, model, lasting=False), 1 + self._repeats + HELD_OUT
        try:
            for done in range(total):
                self._repeat_batches(trainer, model, chain, done, done > self._repeats)
                spent = time.perf_counter() - started
                left = spent / (done + 1) * (total - done - 1)
                self._say(f"noise floor from step {chain.first}: {done + 1} of {total} repeats, {left:.0f} s left")
        finally:
            after.put_back(trainer, model, again=False)
        seconds = (time.perf_counter() - started) / len(chain.recorded)
        for saved, margins in zip(chain.batches, chain.margins, strict=True):
            if step := chain.recorded.get(saved.number):
                step.write(saved.number, chain.first, self._repeats, seconds, margins)

    def _repeat_batches(
        self, trainer: Trainer, model: LightningModule, chain: _Chain, number: int, held_out: bool
    ) -> None:
        """All batches once more; and again with the recorded tokens, if one of them became another.

        Args:
            number: of the repeat; the first one, 0, moves nothing.
        """
        flipped = len(chain.batches)  # the first batch with a flip
        for keep in (False, True):
            chain.start.put_back(trainer, model, again=True)
            generator, behind = torch.Generator().manual_seed(number) if number else None, False
            for place, saved in enumerate(chain.batches):
                recorded = None if keep and place < flipped else chain.recorded.get(saved.number)
                margins = chain.margins[place]
                margins.attach(keep)
                try:
                    behind = self._train_again(trainer, model, saved, generator, recorded, held_out, behind)
                finally:
                    margins.detach()
                behind = behind or margins.flipped
                flipped = min(flipped, place) if behind and not keep else flipped
                if recorded and keep:
                    recorded.kept += not behind
            if not number or flipped == len(chain.batches):
                return

    def _train_again(
        self,
        trainer: Trainer,
        model: LightningModule,
        saved: SavedBatch,
        generator: torch.Generator | None,
        recorded: _RecordedStep | None,
        held_out: bool,
        behind: bool,
    ) -> bool:
        """One step of a repeat; without a recorded one nothing is kept. Arguments and answer as of `Tally.add`."""
        batch, optimizer = copy.deepcopy(saved.batch), trainer.optimizers[0]
        self._repeat = repeat = _Repeat(model, batch, generator)
        write_settings(optimizer, saved.groups)
        restore_generators(saved.generators)
        try:
            if recorded:
                repeat.calls.attach()
            train_again(trainer, batch, saved.position, saved.counters)
            return recorded.add(repeat, model, optimizer, held_out, behind) if recorded else behind
        finally:
            self._repeat = None
            repeat.calls.detach()
