"""A recorded step as a replay needs it: which calls ran inside which, and which numbers each drew by itself."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import Tensor

from nest_ssl.base.nested import tensors
from nest_ssl.record.observers.copies import same_bits
from nest_ssl.recording import layout
from nest_ssl.recording.calls import Call
from nest_ssl.recording.index import DrawEntry
from nest_ssl.recording.step_files import StepFiles


class RecordedCalls:
    """The calls of one step.

    Args:
        other_device: whether the candidate is on another kind of device: torch then draws from another generator, which
            gives other numbers, and what the reference drew from torch's cannot be had.

    Attributes:
        calls: in the order in which they started.
    """

    def __init__(self, step: StepFiles, other_device: bool = False) -> None:
        self._others = ("torch",) if other_device else ()
        self.calls = with_gradients_of_later(step.calls(), step.later_calls())
        self._draws: dict[tuple[int, int], list[DrawEntry]] = defaultdict(list)
        for entry in step.rng().ledger or ():
            if entry.index is not None and self.has(entry.generator):
                self._draws[entry.index, entry.event].append(entry)
        self._states = step.generator_states() if step.has(layout.GENERATOR_STATES) else {}

    def has(self, generator: str) -> bool:
        """Whether what is drawn from a generator can be compared."""
        return not generator.startswith(self._others)

    def by_end(self) -> list[Call]:
        """In the order in which they ended: what a call calls stands before it."""
        return sorted(self.calls, key=lambda call: call.end)

    def inside(self, call: Call | None) -> dict[str, list[Call]]:
        """The calls that ran within `call` (within none: those of the training step itself), by module.

        Where it called a module itself, calls of that module from deeper inside are left out.
        """
        found: dict[str, list[Call]] = defaultdict(list)
        direct: dict[str, list[Call]] = defaultdict(list)
        covered = -1 if call is None else call.start  # up to which event a direct one reaches
        for other in self.calls if call is None else self.calls[call.index + 1 :]:
            if call is not None and other.start > call.end:
                break
            found[other.module].append(other)
            if other.start > covered:
                direct[other.module].append(other)
                covered = other.end
        return {**found, **direct}

    def draws(self, call: Call, event: int) -> dict[str, DrawEntry]:
        """What `call` itself drew in the stretch of its own code that begins after `event`, by generator.

        Args:
            event: the number of starts and ends of calls before the stretch.
        """
        return {entry.generator: entry for entry in self._draws.get((call.index, event), ())}

    def lacks_state(self, call: Call) -> bool:
        """Whether it drew numbers from a generator whose whole state was not kept."""
        own = [e for (index, _), entries in self._draws.items() if index == call.index for e in entries]
        return any(entry.before not in self._states.get(entry.generator, {}) for entry in own)

    def state(self, entry: DrawEntry) -> Tensor:
        """The whole state of the generator before these draws, see `base.rng.state_bytes`."""
        return self._states[entry.generator][entry.before]


def with_gradients_of_later(calls: list[Call], later: list[Call]) -> list[Call]:
    """Calls that backward ran again (activation checkpointing) have their gradients in the second run."""
    waiting = defaultdict(list)
    for call in calls:
        if not call.output_grads:
            waiting[call.module].append(call)
    for again in later:
        for call in waiting[again.module] if again.output_grads else ():
            if not call.output_grads and same_inputs(call.inputs, again.inputs):
                call.output_grads, call.grad_event = again.output_grads, again.grad_event
                break
    return calls


def same_inputs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two calls got tensors of the same bits."""
    first, second = dict(tensors(one)), dict(tensors(other))
    return first.keys() == second.keys() and all(same_bits(second[path], tensor) for path, tensor in first.items())
