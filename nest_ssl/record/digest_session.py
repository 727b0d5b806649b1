"""Sessions that record of each step the hashes of its tensors alone, or its operators: `record=digest`, `operators`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import leaves, to_builtins
from nest_ssl.base.rng import rng_digests
from nest_ssl.record.levels import Level
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.copies import Unkept
from nest_ssl.record.observers.digests import Digests, Hashed, Hashing
from nest_ssl.record.observers.parameters import gradients, optimizer_state, weights
from nest_ssl.record.session import Session
from nest_ssl.recording import layout as files
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.calls import Call
from nest_ssl.recording.digests import HEX, Fingerprint, StepDigests
from nest_ssl.recording.writer import RecordingWriter

Entries = list[tuple[Address, Hashed]]


def open_session(
    writer: RecordingWriter,
    steps: Iterable[int] | None,
    output_names: Sequence[str],
    config: str | Mapping[str, Any],
    operators: bool | Sequence[str],
    level: Level,
) -> Session:
    """A session of that level; arguments as of `Session`.

    Raises:
        UserError: operators are asked for, of which a digest has none.
    """
    if level.record == "operators":
        return OperatorSession(writer, steps, output_names, config, operators or True, level)
    if level.record != "digest":
        return Session(writer, steps, output_names, config, operators, level)
    if operators:
        raise UserError("a digest has no operators", f"record=digest, operators={operators}", "Leave one of them out.")
    return DigestSession(writer, steps, output_names, config, level=level)


class OperatorSession(Session):
    """As `Session`, boundary by boundary, but no tensor of a step is copied, hashed or written."""

    _copies = Unkept

    def validation(self) -> None:
        """Nothing of a validation is recorded but what it gave."""

    def _save(self, name: str, make: Callable[[], Any], owned: bool = False) -> None:
        """What would be in it is not even made."""

    def _own(self, value: Any) -> Any:
        """As it is: it is not written."""
        return value


class DigestSession(Session):
    """As `Session`, boundary by boundary. Of a step it writes one small file, and reads every tensor once.

    Draws are not charged to calls: of the generators there is the state at the start and at the end of a step.
    """

    _calls: CallObserver | None = None  # of the step that is being recorded

    def __init__(self, writer: RecordingWriter, *arguments: Any, **settings: Any) -> None:
        super().__init__(writer, *arguments, **settings)
        self._hashing = Hashing(writer.beside)

    def batch(self, batch: Any, number: int | None = None, epoch: int = 0, position: int | None = None) -> None:
        assert self._model is not None, "begin(model) comes first"
        self._leave_step()
        self._number = self._number if number is None else number
        if self.steps is None or self._number in self.steps:
            self._seen = Digests(self._hashing)
            self._before = [*self._generators("start"), *self._nested(Address(Kind.FIELD), batch)]
            self._loss, self._gradients = Entries(), Entries()
            digests = partial(Digests, self._hashing)
            self._calls = CallObserver(self._model, None, self.level.modules(self._model), digests).attach()

    def loss(self, loss: torch.Tensor) -> None:
        if self._calls and not self._loss:
            self._loss = self._nested(Address(Kind.LOSS), {"loss": loss})
            self._calls.loss_reached()

    def backward_done(self) -> None:
        if self._calls and not self._gradients:
            self._gradients = self._by_name(Kind.GRADIENT, gradients(self._calls.root))

    def step_done(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        stepped: bool = True,
        loader_workers: int | None = 0,
        schedulers: Sequence[Any] = (),
    ) -> None:
        if self._calls:
            model, calls = self._calls.root, self._calls.detach()
            self._calls = None
            after = self._by_name(Kind.PARAMETER, weights(model))
            if optimizer is not None:
                after += self._by_name(Kind.OPTIMIZER_STATE, optimizer_state(model, optimizer)["state"])
            for stage in self._hashing.stages.values():
                stage.flush()
            parts, end = (self._before, calls, self._loss, self._gradients, after), self._generators("end")

            def text() -> str:  # in the background, where the last hashes are waited for
                before, calls, loss, gradients, after = parts
                order = [*before, *forward(calls), *loss, *backward(calls), *gradients, *after, *end]
                found = [(place, hashed.result() if isinstance(hashed, Future) else hashed) for place, hashed in order]
                return StepDigests.of(found).model_dump_json() + "\n"

            self.writer.keep_up()  # of no more than two steps there is anything in memory
            self.writer.save_text(f"{files.step_folder(self._number)}/{files.DIGESTS}", text)
            self.recorded.append(self._number)
        self._number += 1

    def validation(self) -> None:
        """Nothing of a validation is recorded but what it gave."""

    def _nested(self, place: Address, value: Any) -> Entries:
        found = leaves(to_builtins(value, self._seen.copy))
        return [(place.at(path), leaf) for path, leaf in found if isinstance(leaf, (Fingerprint, Future))]

    def _by_name(self, kind: Kind, values: dict[str, Any]) -> Entries:
        return [entry for name, value in values.items() for entry in self._nested(of_entry(kind, name), value)]

    def _generators(self, moment: str) -> Entries:
        place = Address(Kind.GENERATOR_STATE, path=moment)
        return [(replace(place, slot=name), Fingerprint("", (), s[:HEX])) for name, s in rng_digests().items()]

    def _await_batch(self, number: int) -> None:
        self._number = number

    def _leave_step(self) -> None:
        """A step that did not come to its end is not recorded; its hooks go."""
        if self._calls:
            self._calls.detach()
        self._calls = None


def forward(calls: Sequence[Call]) -> Entries:
    """Inputs at the start of each call and outputs at its end, in that order."""
    events: list[tuple[int, Entries]] = []
    for call in calls:
        given = [(Address(Kind.INPUT, call.module, call.call, slot), value) for slot, value in call.inputs.items()]
        returned = [(Address(Kind.OUTPUT, call.module, call.call), call.output)]
        for event, values in ((call.start, given), (call.end, returned)):
            found = [(place.at(path), leaf) for place, value in values for path, leaf in leaves(value)]
            events.append((event, [(place, leaf) for place, leaf in found if isinstance(leaf, (Fingerprint, Future))]))
    return [entry for _, entries in sorted(events, key=lambda one: one[0]) for entry in entries]


def backward(calls: Sequence[Call]) -> Entries:
    """Output gradients, in the order in which backward reached the calls."""
    reached = sorted((call for call in calls if call.grad_event is not None), key=lambda call: call.grad_event or 0)
    entries: list[tuple[Address, Any]] = []
    for call in reached:
        place = Address(Kind.OUTPUT_GRADIENT, call.module, call.call)
        entries += [(place.at(path), gradient) for path, gradient in call.output_grads.items()]
    return entries
