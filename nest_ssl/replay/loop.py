"""What a trainer does around the calls of its model, with recorded numbers: batch, loss, clipping, update, schedule.

Whoever runs the candidate's own loop says when each boundary is reached, in this order; at each what the candidate made
is compared, and the reference's numbers are put in its place, so that what follows is judged by itself:

    loop.batch(batch)             the candidate's loader made it
    loop.loss(training_step)      instead of the training step itself, which runs in it
    loop.backward_done()          gradients are complete
    loop.ready(optimizer)         and clipped, and about to be used
    loop.step_done(optimizer)     the update is made, and the schedule went on
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nest_ssl.base.nested import ABSENT, pairs, tensors, to_builtins
from nest_ssl.base.rng import set_state
from nest_ssl.record.observers.copies import same_bits
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.evidence import Deviation, Outcome, Phase
from nest_ssl.recording.reader import Recording
from nest_ssl.replay.calls import CallReplay, Draft
from nest_ssl.replay.deviation import compare_leaf, compare_nested, deviation_of
from nest_ssl.replay.frames import Frame, hollow, refill
from nest_ssl.replay.model_state import load_weights

PHASES: tuple[Phase, ...] = ("batch", "loss", "clipping", "optimizer", "schedule")
# Other ways to compute the same; the rate is the schedule's.
ON_DEVICE = ("fused", "capturable")  # settings with which an optimizer keeps its counters beside the weights
NOT_THE_UPDATES = frozenset({"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"})


class LoopReplay:
    """One recorded step of the loop.

    Args:
        recording: the reference.
        calls: the replayed calls of the step, whose gradients the loss needs.
        weights: parameters and buffers at its start.
    """

    def __init__(self, recording: Recording, calls: CallReplay, weights: dict[str, Tensor]) -> None:
        self.step, self.calls, self.weights = recording.step(calls.step), calls, weights
        self.facts = recording.index.steps[calls.step]
        self.model = calls.interception
        self.parameters = self.model.parameters()
        self.drafts = {phase: Draft(calls.step, phase, own_code=phase == "loss") for phase in PHASES}
        for draft in self.drafts.values():
            draft.stopped = "not replayed", "the candidate's loop did not come to it"
        self._form: Any = None

    def fetch(self) -> None:
        """The batch is going to be made: generators stand where they stood then."""
        for generator, state in (self.step.state_at("fetch") or {}).items():
            set_state(generator, state)

    def batch(self, batch: Any) -> None:
        """The candidate's loader made this one; the step then goes on with the recorded one."""
        recorded = dict(tensors(self.step.batch()))
        found = dict(tensors(to_builtins(batch, lambda tensor: tensor)))
        for path, one, other in pairs(recorded, found):
            self._compare("batch", Address(Kind.FIELD, slot=path), one, other)
        self._form = hollow(batch)
        load_weights(self.model, self.weights)

    def loss(self, training_step: Callable[[Any], Any], share: float = 1.0) -> None:
        """Run the candidate's training step on the recorded batch; calls in it answer as they were recorded.

        Args:
            share: of the loss in that of several batches whose gradients are added up.
        """
        draft, frame = self.drafts["loss"], Frame(self.calls.recorded, None, self.calls.done)
        draft.stopped = None
        for generator, state in (self.step.state_at("batch_ready") or {}).items():
            set_state(generator, state)
        recorded, device = self.step.batch(), next(iter(self.parameters.values())).device
        fields = {path: tensor.to(device, copy=True) for path, tensor in tensors(recorded)}
        with torch.enable_grad(), self.model.installed(), self.model.replaying(frame):
            returned = training_step(refill(self._form, recorded, fields))
            loss = (returned["loss"] if isinstance(returned, Mapping) else returned) / share
        self._compare("loss", Address(Kind.LOSS, slot="loss"), self.step.loss()["loss"], loss)
        draft.add(frame.compared, frame.handed)
        if loss.requires_grad:
            with self.model.installed(), self.calls.gradients.collecting():
                self.calls.backward_of(frame, draft, [loss], [torch.ones_like(loss)], {})

    def backward_done(self) -> None:
        """Put the recorded gradients, as backward left them."""
        self._put(self.step.gradients())

    def ready(self, optimizer: Optimizer) -> None:
        """Compare the gradients that the update is going to use; then put those that were used, state and rates."""
        applied = self.step.applied_gradients()
        if applied is None:
            why = "the gradients that the update used were not recorded" if self.facts.optimizer_stepped else ""
            self.stop(why or "the reference made no update with this batch", PHASES[2:])
            return
        self.drafts["optimizer"].stopped = None
        if self.model.changed:  # the norm of all gradients is not that of those that can be put
            self.stop("the map of names makes other tensors of some gradients", ("clipping",))
        compared = [] if self.model.changed else [name for name in applied.gradients if name in self.parameters]
        for name in compared:  # others: the structure's matter
            gradient, found = applied.gradients[name], self.parameters[name].grad
            if gradient is not None or found is not None:
                both = (ABSENT if value is None else value for value in (gradient, found))
                self._compare("clipping", of_entry(Kind.APPLIED_GRADIENT, name), *both)
        self._put(applied.gradients)
        names = {parameter: name for name, parameter in self.parameters.items()}
        state = self.step.start_optimizer_state() or {}
        for parameter, group in [(p, g) for g in optimizer.param_groups for p in g["params"]]:
            entries = state.get(names.get(parameter, ""), {})
            optimizer.state.pop(parameter, None)
            if entries:
                optimizer.state[parameter] = _on_device(entries, parameter, any(group.get(key) for key in ON_DEVICE))
        recorded, own = self.step.start_groups() or [], [group["lr"] for group in optimizer.param_groups]
        self._compare_groups(optimizer, recorded)
        for group, given in zip(optimizer.param_groups, recorded, strict=False):
            group["lr"] = given["lr"]

        def put_rates_back(*_: Any) -> None:  # before the schedule goes on from them
            made.remove()
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate

        made = optimizer.register_step_post_hook(put_rates_back)

    def step_done(self, optimizer: Optimizer | None) -> None:
        """Compare what the update made of weights and state, and the rates that come next."""
        if optimizer is None or self.drafts["optimizer"].stopped:
            return
        after = self.step.weights()
        for name, parameter in self.parameters.items():
            if name not in after or name not in self.weights:
                continue
            found, before = parameter.detach().cpu(), self.weights[name]
            if not found.shape == after[name].shape == before.shape:
                continue
            if same_bits(found, after[name]):
                self.drafts["optimizer"].add(1, [])
            elif same_bits(after[name], before) and same_bits(found, before.to(found.dtype)):
                self.drafts["optimizer"].add(1, [])  # neither moved it, in whatever number format the candidate has it
            else:
                updates = after[name].double() - before.double(), found.double() - before.double()
                deviation = deviation_of(of_entry(Kind.UPDATE, name), after[name], found, updates)
                self.drafts["optimizer"].add(1, [deviation] if deviation else [])
        recorded = self.step.optimizer_state()
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        found_state = {names.get(parameter, ""): entries for parameter, entries in optimizer.state.items()}
        known = {name: entries for name, entries in recorded["state"].items() if name in self.parameters}
        for name, one, other in pairs(known, found_state):
            self.drafts["optimizer"].add(*compare_nested(of_entry(Kind.OPTIMIZER_STATE, name), one, other))
        for number, (group, given) in enumerate(zip(optimizer.param_groups, recorded["param_groups"], strict=False)):
            self._compare("schedule", _setting(number, "lr"), given["lr"], group["lr"])

    def _compare_groups(self, optimizer: Optimizer, recorded: list[dict[str, Any]]) -> None:
        """Settings of the groups: rates are the schedule's, the others the optimizer's."""
        for number, (group, given) in enumerate(zip(optimizer.param_groups, recorded, strict=False)):
            self._compare("schedule", _setting(number, "lr"), given["lr"], group["lr"])
            settings = ({k: v for k, v in g.items() if k not in NOT_THE_UPDATES} for g in (given, group))
            for key, one, other in pairs(*settings):
                self.drafts["optimizer"].add(*compare_nested(_setting(number, key), one, other))
        if len(optimizer.param_groups) != len(recorded):
            count = f"{len(recorded)} groups of parameters against {len(optimizer.param_groups)}"
            self._compare("optimizer", _setting(len(recorded), ""), count, "")

    def _put(self, gradients: dict[str, Tensor | None]) -> None:
        for name, parameter in self.parameters.items():
            gradient = gradients.get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device, parameter.dtype, copy=True)

    def _compare(self, phase: Phase, address: Address, recorded: Any, found: Any) -> None:
        draft = self.drafts[phase]
        draft.stopped = None
        deviation: Deviation | None = compare_leaf(address, recorded, found)
        draft.add(1, [deviation] if deviation else [])

    def stop(self, why: str, phases: Sequence[Phase] = PHASES, outcome: Outcome = "not replayed") -> None:
        """These phases cannot be replayed, or ended in an exception, but for those that are already done."""
        for phase in phases:
            if self.drafts[phase].stopped or not self.drafts[phase].compared:
                self.drafts[phase].stopped = outcome, why


def _setting(group: int, key: str) -> Address:
    return Address(Kind.OPTIMIZER_SETTING, slot=str(group), path=key)


def _on_device(entries: dict[str, Any], parameter: Tensor, counters: bool) -> dict[str, Any]:
    """A parameter's state as the optimizer keeps it: what has its shape lies where it lies, `counters` too or not."""
    return {
        key: value.to(parameter.device if counters or value.shape == parameter.shape else value.device, copy=True)
        if isinstance(value, Tensor)
        else value
        for key, value in entries.items()
    }
