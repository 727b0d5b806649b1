"""The candidate once more, from its own recording: built as it was trained, and fed what the reference recorded."""

from __future__ import annotations

import functools
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.determinism import seed_all, set_determinism
from nest_ssl.base.errors import InterruptedRun, UserError
from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.base.renaming import Rename
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.base.safe_load import first_line
from nest_ssl.config.compose import SOURCE_KEYS, data_paths
from nest_ssl.record.observers.update import UpdateObserver
from nest_ssl.record.structure import describe_sources
from nest_ssl.recording.damage import DAMAGED
from nest_ssl.recording.evidence import Replay
from nest_ssl.recording.reader import Recording
from nest_ssl.replay import replay
from nest_ssl.replay.loop import LoopReplay
from nest_ssl.replay.replay import Loops
from nest_ssl.run.compared import refuse_ranks
from nest_ssl.run.experiment import build_trainer
from nest_ssl.run.subject import Inputs, Subject

# Of the Trainer: nothing is kept, shown or validated.
BARE = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
DOUBLE = "64-true"
MOST_BATCHES = 1000  # to fetch until a recorded step is reached


def replay_recording(
    subject: Subject,
    reference: Recording,
    candidate: Recording,
    double: bool = False,
    steps: Sequence[int] | None = None,
    rename: Rename | None = None,
) -> Replay:
    """Feed `reference` to the model that `candidate` says it trained.

    Args:
        subject: the trainer that recorded `candidate`.
        double: build it in float64, whatever it was trained in.
        steps: of the reference; by default all.
        rename: from the names of its modules to the reference's, which `candidate` is read under too.

    Raises:
        UserError: the candidate cannot be built here, its code is no longer that of the recording, or it trained in
            several processes.
    """
    refuse_ranks(reference, candidate)
    try:
        subject.load()
    except ImportError as error:
        where = f"{subject.package}: {error}"
        raise UserError("the candidate's trainer is not installed here", where, "Run in its environment.") from error
    set_determinism()
    cfg = data_paths(OmegaConf.create(candidate.config))
    if double:
        cfg.trainer.precision = DOUBLE
    trainer, model = build_candidate(subject, cfg)
    unchecked = refuse_other_code(model, candidate)
    precision = trainer.precision_plugin.forward_context
    run_loop = functools.partial(run_training_loop, trainer, model, generator_states())
    found = replay(reference, model, candidate, steps=steps, precision=precision, run_loop=run_loop, rename=rename)
    return found.model_copy(update={"unchecked": unchecked})


def build_candidate(subject: Subject, cfg: DictConfig) -> tuple[Trainer, LightningModule]:
    """The model as training starts with it, seeded, in its precision and on its device, but for weights of files."""
    for key in SOURCE_KEYS:
        cfg.pop(key, None)
    trainer = build_trainer(cfg, [], **BARE)
    seed_all(cfg.seed)
    model = subject.build_model(cfg, trainer, Inputs())
    trainer.precision_plugin.convert_module(model)
    return trainer, model.to(trainer.strategy.root_device)


def refuse_other_code(model: LightningModule, candidate: Recording) -> str:
    """Evidence about code that has changed since would be evidence about something else.

    Returns:
        what could not be checked, as a sentence; empty where the files of all classes of modules are the recorded ones.

    Raises:
        UserError: a file is another one, or the classes are not the recorded ones.
    """
    recorded = {name: source.model_dump() for name, source in candidate.index.sources.items()}
    if not recorded:
        return f"Whether the code is still that of {candidate.path} was not checked: no source file is recorded there."
    for name, one, other in pairs(recorded, describe_sources(model)):
        if one != other:
            file = (other if isinstance(other, dict) else recorded[name])["file"]
            where = f"{file}: {name}" + (" is on one side only" if ABSENT in (one, other) else "")
            raise UserError("the code has changed since it was recorded", where, "Record the candidate again.")
    return ""


class LoopDriver(Callback):
    """Lightning's hooks as the boundaries of `LoopReplay`: the loop is the candidate's own, the numbers are recorded.

    Batches that are not among the steps are fetched and not trained.
    """

    def __init__(self, loops: Loops) -> None:
        self.loops = loops
        self.loop: LoopReplay | None = None
        self._observer: UpdateObserver | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        training_step = pl_module.training_step

        def replayed(batch: Any, batch_idx: int) -> torch.Tensor:
            if self.loop is not None:
                share = float(trainer.accumulate_grad_batches)
                self.loop.loss(lambda recorded: training_step(recorded, batch_idx), share)
            return torch.zeros((), requires_grad=True)

        pl_module.__dict__["training_step"] = replayed
        self._await(0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.loop = self.loops.get(trainer.fit_loop.epoch_loop.total_batch_idx)
        if self.loop is not None:
            self.loop.batch(batch)
            self._observer = UpdateObserver(pl_module, self.loop.ready)
            self._observer.attach()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.loop is not None:
            self.loop.backward_done()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        if self.loop is not None and self._observer is not None:
            self._observer.detach()
            self.loop.step_done(trainer.optimizers[0])
        self._await(number + 1)
        trainer.should_stop = trainer.should_stop or number >= max(self.loops)

    def _await(self, number: int) -> None:
        if number in self.loops:
            self.loops[number].fetch()


def run_training_loop(trainer: Trainer, model: LightningModule, built: Mapping[str, Any], loops: Loops) -> None:
    """Run the candidate's own training loop as far as the last of the steps; what goes wrong in it is noted there.

    Args:
        built: states of the generators once the model was built: an epoch whose beginning is not recorded is shuffled
            from there on.

    Raises:
        InterruptedRun: a signal stopped it.
        UserError: the reference's recording is damaged.
    """
    near = {number: loop for number, loop in loops.items() if number < MOST_BATCHES}
    for number, loop in loops.items():
        if number not in near:
            loop.stop(f"{number:,} batches come before it")
    driver = LoopDriver(near)
    trainer.callbacks.append(driver)  # type: ignore[attr-defined]
    own_step = {key: value for key, value in model.__dict__.items() if key == "training_step"}
    try:
        if near:
            restore_generators(built)
            trainer.fit(model)
    except SIGTERMException as stop:  # one of SystemExit's kind
        raise InterruptedRun(signal.SIGTERM) from stop
    except SystemExit as stop:
        raise InterruptedRun(signal.SIGINT) from stop
    except Exception as error:
        if isinstance(error, UserError) and error.what == DAMAGED:  # the reference, not the candidate
            raise
        why = f"{type(error).__name__}: {first_line(error)}"
        for number, loop in near.items():
            if driver.loop is None or number >= driver.loop.calls.step:
                loop.stop(why, outcome="raised")
    finally:
        model.__dict__.pop("training_step", None)
        model.__dict__.update(own_step)
