"""Records a training run of any torch model in any loop.

What happens at which boundary is stated in `Session`, in the order in which it happens, and nowhere else. Only the
batches asked for are watched: on the others no hook is registered and nothing is copied. Generators are read once more
where the batch before one ends, since what is drawn from there on makes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import CodeType, MappingProxyType
from typing import Any, Literal

import torch
import yaml
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import plain, to_builtins
from nest_ssl.base.rng import rng_digests
from nest_ssl.base.safe_load import load_tensors
from nest_ssl.record.levels import ALL, Level
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.changes import changes
from nest_ssl.record.observers.copies import Copies, room
from nest_ssl.record.observers.draws import DrawObserver
from nest_ssl.record.observers.operators import OperatorObserver
from nest_ssl.record.observers.parameters import gradients, optimizer_state, weights
from nest_ssl.record.observers.update import UpdateObserver, applied
from nest_ssl.record.observers.validation import ValidationObserver
from nest_ssl.record.provenance import describe_device, describe_run
from nest_ssl.record.ranks import processes
from nest_ssl.record.refusals import refuse_one_place, refuse_steps_outside
from nest_ssl.record.secrets import masked_yaml
from nest_ssl.record.step import Step, describe, modes
from nest_ssl.record.structure import describe_sources, describe_structure, qualified_name
from nest_ssl.recording import layout as files
from nest_ssl.recording.evidence import LearningRates, Rates
from nest_ssl.recording.tensors import storable, tensor_digest
from nest_ssl.recording.writer import RecordingWriter

COPIED = 4  # copies of the size of the model: weights, gradients, and two moments of an optimizer
WATCHED = 2  # validations of which the first batches are recorded; of later ones only what they gave in all
Mark = Literal["before_model", "after_model", "before_first_batch"]
# What draws before each of them; from the first that is marked on, every number drawn is accounted for.
_DRAWN_BEFORE = {"before_model": "before_model", "after_model": "model_construction", "before_first_batch": "fit_start"}


class Session(AbstractContextManager["Session"]):
    """A recording in the making. As a context manager it drops what is not finished.

    Args:
        writer: where to.
        steps: training batches to record, counted from 0; None records all.
        output_names: names for the outputs of the model's `forward`, in order.
        config: the settings of the experiment, as YAML or as a mapping of plain values, compared as part of the
            contract; secrets in it are masked.
        operators: whether to record the ATen operators of each step too, or patterns of the modules to do it for, as
            `encoder.layers.0*`.
        level: how much of each step is recorded.
    """

    _copies: type[Copies] = Copies  # what is kept of the tensors that hooks see

    def __init__(
        self,
        writer: RecordingWriter,
        steps: Iterable[int] | None = None,
        output_names: Sequence[str] = (),
        config: str | Mapping[str, Any] = "{}\n",
        operators: bool | Sequence[str] = False,
        level: Level = ALL,
    ) -> None:
        self.writer, self.level = writer, level
        self.unwatched: Collection[CodeType] = ()  # functions whose operators are no part of training, as a logger's
        self._operators = operators
        self.steps = None if steps is None else frozenset(steps)
        self.recorded: list[int] = []
        self._output_names = tuple(output_names)
        self._index: dict[str, Any] = {"steps": {}, "calls": {}, "rng": {}, **describe_run()}
        self._index["level"] = level.described()
        self._model: nn.Module | None = None
        self._before_steps: DrawObserver | None = None
        self._draws: DrawObserver | None = None  # of the step being recorded, or of the next, from the end of the last
        self._step: Step | None = None
        self._number = 0  # of the step in progress, or the next
        # Files with the weights and the optimizer's state as the next step should find them; empty where unknown.
        self._last_weights = self._last_optimizer = ""
        self._modes: dict[str, bool] = {}  # of modules, as the structure has them
        self._remote = False  # whether the model lies on a device that computes on while the host goes on
        self._behind, self._owned = False, 0  # whether all is written behind training; bytes of copies that wait for it
        self._validation: ValidationObserver | None = None
        self._validations = 0
        self._fetch: dict[str, str] | None = None  # states from which the batch of `_draws` is made
        settings = config if isinstance(config, str) else yaml.safe_dump(plain(config), sort_keys=False)
        writer.save_text(files.CONFIG, masked_yaml(settings))

    # --- before the steps ---

    def mark(self, moment: Mark) -> None:
        """Note the generators' states at a moment before the steps."""
        self._index["rng"][moment] = rng_digests()
        if self._before_steps is None:
            self._before_steps = DrawObserver(moment, self.writer.beside)
        self._before_steps.charge(_DRAWN_BEFORE[moment])

    def initial_weights(self, model: nn.Module) -> None:
        """The model is built and on its device, and has not run yet. `begin` takes this upon itself, unless something
        runs the model before training starts, as Lightning's sanity check does."""
        if self._model is None:
            self._model = model
            self.writer.save_tensors(files.INITIAL_WEIGHTS, weights(model))

    def begin(self, model: nn.Module, first_step: int = 0, batches: float = float("inf")) -> None:
        """Training starts: what the model is and where it runs, and its weights before the first batch.

        Args:
            model: what is trained, built and on its device.
            first_step: how many batches a resumed run has behind it.
            batches: after how many, counted from 0, training ends.

        Raises:
            UserError: several processes train and the writer does not know which this is, a step to record is
                already trained or never reached, or a pattern of modules fits none.
        """
        self.level.refuse_what_fits_nothing(model)
        world_size = processes()
        refuse_one_place(world_size, self.writer.rank)
        refuse_steps_outside(self.steps or frozenset(), first_step, batches)
        self.mark("before_first_batch")
        self.initial_weights(model)
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self._index |= {"world_size": world_size, "device": describe_device(device)}
        self._remote = device.type == "cuda"
        size = sum(tensor.numel() * tensor.itemsize for tensor in weights(model).values())
        self._behind = self._remote or COPIED * size <= room(device)
        self._owned = COPIED * size if self._behind and not self._remote else 0
        if self.writer.rank is not None:
            self._index["rank"] = self.writer.rank
        self._index["sources"] = describe_sources(model)  # now: a file edited meanwhile is not what trained
        self.writer.save_builtins(files.STRUCTURE, describe_structure(model))
        self._modes = modes(model)
        self._await_batch(first_step)
        self._last_weights = files.INITIAL_WEIGHTS

    # --- a step, boundary by boundary ---

    def batch(self, batch: Any, number: int | None = None, epoch: int = 0, position: int | None = None) -> None:
        """The batch is made, and nothing is done with it yet. From here on every call of a module is watched.

        Args:
            number: of the step, where the loop may have skipped some.
            epoch: which it is, from 0.
            position: of the batch in its epoch; by default the step's number.
        """
        assert self._model is not None, "begin(model) comes first"
        self._leave_step()
        if number is not None and number != self._number:
            self._await_batch(number)
        if self._draws:
            place = {"epoch": epoch, "batch": self._number if position is None else position}
            calls_file = f"{files.step_folder(self._number)}/{files.CALLS}"
            copies = partial(self._copies, self.writer.spill(calls_file, room(torch.device("cpu")) - self._owned).put)
            calls = CallObserver(self._model, self._draws, self.level.modules(self._model), copies)
            update = UpdateObserver(self._model, self._before_update)
            live, last = to_builtins(batch, lambda tensor: tensor), self._last_weights
            self.writer.keep_up()  # of no more than two steps there is anything in memory
            started_with = to_builtins(live, lambda tensor: Copies().copy(tensor))
            self._step = Step(place, self._draws, calls, update, live, started_with)
            started, out = weights(self._model), self.writer.folder
            self._save(files.STEP_START, lambda: self._compared(started, lambda own: changes(own.items(), out, last)))
            now = modes(self._model)
            self._step.training = {name: mode for name, mode in now.items() if self._modes.get(name) != mode}
            self._step.boundary("batch_ready", "training_step")
            self._draws.keep()
            calls.attach()
            update.attach()
            if self._operators:
                patterns = () if isinstance(self._operators, bool) else self._operators
                self._step.operators = OperatorObserver(calls, self._number, patterns, self.unwatched)
                self._step.operators.attach()

    def loss(self, loss: torch.Tensor) -> None:
        """The forward is done, backward not begun. A second loss in the same step is not recorded."""
        step = self._step
        if step and step.loss is None:
            step.loss = Copies().copy(loss)
            step.boundary("forward_done", "backward")
            step.calls.loss_reached()
            step.compare_batch()
            if loss.requires_grad:  # gradients may still be cleared until backward comes to it
                step.loss_hook = loss.register_hook(lambda _: step.backward_begins())  # type: ignore[no-untyped-call]

    def backward_done(self) -> None:
        """Gradients are complete, neither clipped nor used."""
        if self._step and self._step.gradients is None:
            self._step.boundary("backward_done", "optimizer_step")
            # Now: they are the model's own, and clipped in place.
            kept = self._step.gradients = storable(self._own(gradients(self._step.calls.root)))
            self._save(files.GRADIENTS, lambda: kept, owned=self._behind)

    def _before_update(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is about to change the model: what it has to do that with, as nothing between here and the
        recorded weights changes it any more."""
        assert self._step is not None
        if self._step.operators:
            self._step.operators.update_begins(optimizer)
        root, kept, folder = self._step.calls.root, self._step.gradients, self.writer.folder
        base, name = self._last_optimizer, f"{files.step_folder(self._number)}/{files.GRADIENTS}"

        def started(found: dict[str, Any]) -> dict[str, Any]:
            changed = changes(found["state"].items(), folder, base, lambda old: old["state"])
            return {**changed, "param_groups": found["param_groups"]}

        def used(found: dict[str, Any]) -> dict[str, Any]:  # beside what is recorded: they may have been clipped
            at_hand = self._behind and not self._remote
            of_backward = kept if at_hand or not kept else load_tensors(folder / name, mapped=True)
            return applied({n: None if g is None else g.cpu() for n, g in found.items()}, of_backward or {})

        self._save(files.OPTIMIZER_START, lambda: self._compared(optimizer_state(root, optimizer), started))
        self._save(files.APPLIED_GRADIENTS, lambda: self._compared(gradients(root), used))

    def step_done(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        stepped: bool = True,
        loader_workers: int | None = 0,
        schedulers: Sequence[Any] = (),
    ) -> None:
        """The batch is done with. What is drawn from here on makes the next one.

        Args:
            optimizer: to record the state of.
            stepped: whether it made a step with this batch (under accumulation it does not with each).
            loader_workers: processes beside this one that load data, with generators of their own, not watched.
            schedulers: of learning rates, to record the state of.
        """
        step = self._step
        folder = files.step_folder(self._number)
        if step:
            traced, calls, model = step.operators, step.leave(), step.calls.root
            if traced:
                content = traced.result().model_dump_json(exclude_defaults=True)
                self.writer.save_text(f"{folder}/{files.OPERATORS}", content + "\n")
            step.boundary("step_done", "fetch")
            self._save(files.BATCH, lambda: step.batch, owned=True)
            output: Any = next((call.output for call in calls if call.module == ""), [])  # of the root's first call
            outputs = output if isinstance(output, list) else [output]
            names = [*self._output_names, *(f"output_{i}" for i in range(len(self._output_names), len(outputs)))]
            # A forward may return less than it is asked to name.
            self._save(files.FORWARD_OUTPUT, lambda: dict(zip(names, outputs, strict=False)), owned=True)
            if step.loss is not None:
                self._save(files.LOSS, lambda: {"loss": step.loss}, owned=True)
            self._save(files.WEIGHTS, lambda: weights(model))
            if optimizer is not None:
                self._save(files.OPTIMIZER, lambda: optimizer_state(model, optimizer))
            rows = {"calls": calls, "later": step.calls.later}
            kept = {key: [call.as_builtins() for call in row] for key, row in rows.items()}
            self._save(files.CALLS, lambda: kept, owned=True)
            self._save(files.GENERATOR_STATES, lambda: step.draws.states, owned=True)
            rng = {"states": step.states, "fetch": self._fetch, "loader_workers": loader_workers}
            self.writer.save_json(f"{folder}/{files.RNG}", lambda: {**rng, "ledger": step.draws.ledger()})
            self.writer.save_json(f"{folder}/{files.FACTS}", {**step.facts(), "schedulers": describe(schedulers)})
            number = str(self._number)
            self._index["steps"][number] = {**step.place, "optimizer_stepped": stepped, "calls": len(calls)}
            self._index["calls"][number] = [call.name for call in calls]
            self.recorded.append(self._number)
        self._step = None
        self._await_batch(self._number + 1)
        self._last_weights = f"{folder}/{files.WEIGHTS}" if step else ""
        self._last_optimizer = f"{folder}/{files.OPTIMIZER}" if step and optimizer is not None else ""

    # --- a validation, between two steps ---

    def validation(self) -> None:
        """Validation begins (its loader may have): what was drawn since the last boundary is its own."""
        assert self._model is not None, "begin(model) comes first"
        self._charge_validation()
        watches = self.steps is None or bool(self.steps)
        self._validation = ValidationObserver(self._model) if watches and self._validations < WATCHED else None

    def validation_batch(self, batch: Any, loader: int = 0) -> None:
        """A batch of loader number `loader` is made; the first of each is watched until the next comes."""
        if self._validation:
            self._validation.batch(batch, loader)

    def validation_done(self, metrics: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Validation is over.

        Args:
            metrics: what it gave in all, numbers or tensors by name, e.g. ``{"val_loss": loss}``.
        """
        self._charge_validation()
        seen = {
            "before_step": self._number,
            "batches": self._validation.done() if self._validation else [],
            "metrics": {name: torch.as_tensor(value).detach() for name, value in metrics.items()},
        }
        self._validation = None
        if self.steps is None or self.steps:
            self.writer.save_tensors(files.validation_file(self._validations), seen)
            self._validations += 1

    def _charge_validation(self) -> None:
        if self._draws and not self._step:
            self._draws.charge("validation")
            self._fetch = self._draws.keep()  # the next batch is made from what validation leaves

    # --- after the steps ---

    def learning_rates(self, configured: Rates, longer: Rates | None = None) -> None:
        """Record the rates of a schedule over steps that need not be trained, see `observers.learning_rates`.

        Args:
            configured: as training is configured.
            longer: as they would be if training were planned for as many steps.
        """
        rates = LearningRates(**{**dict(configured), "longer": longer})
        self.writer.save_text(files.LEARNING_RATES, rates.model_dump_json() + "\n")

    def finish(self, **index: Any) -> None:
        """Complete the recording; `index` is added to `recording.json`, and the model's class to its `trainer`.

        Raises:
            UserError: nothing was trained, a step that was asked for was never reached, or the recording cannot be
                written.
        """
        with self:
            if self._model is None or self._before_steps is None or "sources" not in self._index:
                raise UserError("nothing was trained", str(self.writer.target), "Train at least one batch.")
            missing = sorted((self.steps or frozenset()) - set(self.recorded))
            if missing:
                where = f"save_steps names {missing[0]}; {len(self.recorded)} of the named steps were trained"
                fix = "Steps count from 0; train more batches or ask for fewer steps."
                raise UserError("a step to record was never reached", where, fix)
            self._index["ledger"] = self._before_steps.ledger()
            self._index["weights_at_end"] = {n: tensor_digest(t) for n, t in weights(self._model).items()}
            trainer = {**index.get("trainer", {}), "class": qualified_name(self._model)}
            self.writer.finish({**self._index, **index, "trainer": trainer})

    def abort(self) -> None:
        """Drop what was written, if it is not finished; an earlier recording in its place is left as it was."""
        self._leave_step()
        if self._validation:
            self._validation.done()
        self.writer.abort()

    def __exit__(self, *error: object) -> None:
        self.abort()

    def _save(self, name: str, make: Callable[[], Any], owned: bool = False) -> None:
        """Write what `make` gives, or what a function gives that it returns, as a file of the step.

        Args:
            owned: whether nothing changes it any more. On a device nothing does: what lies there is held in copies; and
                where there is room, of what lies on the CPU copies are written behind training too.
        """
        value = make()
        value = value if owned or callable(value) else self._own(value)
        self.writer.save_tensors(f"{files.step_folder(self._number)}/{name}", value, owned or self._behind)

    def _compared(self, found: dict[str, Any], compared: Callable[[dict[str, Any]], Any]) -> Any:
        """On a CPU comparing at once costs less than copying, and little has changed; a device is not waited for, and
        what it holds is compared with what is on the disk by then."""
        if not self._remote:
            return compared(found)
        own = self._own(found)
        return lambda: compared(own)

    def _own(self, value: Any) -> Any:
        """What may be written behind training: what lies on the CPU (an optimizer counts its steps there, wherever the
        model lies) is copied, each tensor once."""
        made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.device.type != "cpu":
                return tensor
            if id(tensor) not in made:
                made[id(tensor)] = tensor, tensor.clone()
            return made[id(tensor)][1]

        return to_builtins(value, copied) if self._behind else value

    def _await_batch(self, number: int) -> None:
        """Watch the generators from here on if the next batch is one to record."""
        self._number = number
        self._last_weights = self._last_optimizer = ""
        self._draws = DrawObserver("fetch", self.writer.beside) if self.steps is None or number in self.steps else None
        self._fetch = self._draws.keep() if self._draws else None

    def _leave_step(self) -> None:
        """A step that did not come to its end is not recorded; its hooks go."""
        if self._step:
            self._step.leave()
            self.writer.leave(f"{files.step_folder(self._number)}/{files.CALLS}")
            self._last_weights = self._last_optimizer = ""
        self._step = None
