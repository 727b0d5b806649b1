"""Reads what was recorded of one training step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pydantic import TypeAdapter

from nest_ssl.recording import contents, schema1
from nest_ssl.recording import layout as files
from nest_ssl.recording.calls import Call
from nest_ssl.recording.contents import AppliedGradients, Changes, OptimizerState
from nest_ssl.recording.damage import damage, read_bytes
from nest_ssl.recording.evidence import StepOperators
from nest_ssl.recording.index import Boundary, StepFacts, StepRandom

if TYPE_CHECKING:
    from nest_ssl.recording.reader import Recording

T = TypeVar("T")


class StepFiles:
    """What was recorded of one training step. Every method maps its file afresh, so drop what you no longer need.

    Raises:
        UserError: (every method) the file is damaged, or holds anything but what it should.
    """

    def __init__(self, recording: Recording, number: int, rank: int) -> None:
        self._recording, self._number, self._rank = recording, number, rank
        self.folder = files.step_folder(number, rank, recording.world_size)

    def has(self, name: str) -> bool:
        """Whether the file, named as in `layout`, was recorded."""
        return f"{self.folder}/{name}" in self._recording.index.files

    @property
    def of_operators_alone(self) -> bool:
        """Whether the recorder was asked for the operators and draws of a step alone."""
        level = self._recording.index.level
        return level is not None and level.record == "operators"

    def batch(self) -> Any:
        return self._load(files.BATCH, contents.NESTED)

    def forward_output(self) -> dict[str, Any]:
        return self._load(files.FORWARD_OUTPUT, contents.BY_NAME)

    def loss(self) -> dict[str, torch.Tensor]:
        return self._load(files.LOSS, contents.TENSORS)

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """By parameter; None where backward reached none."""
        return self._load(files.GRADIENTS, contents.GRADIENTS)

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers after the step."""
        return self._load(files.WEIGHTS, contents.TENSORS)

    def optimizer_state(self) -> OptimizerState:
        return self._load(files.OPTIMIZER, contents.OPTIMIZER)

    def start_weights(self) -> dict[str, torch.Tensor] | None:
        """Parameters and buffers before the step; None if they are not known.

        In recordings without a file of them they are those that the step before left, or the initial ones.
        """
        recording, before = self._recording, self._before()
        if self.has(files.STEP_START):
            bases = {files.INITIAL_WEIGHTS: recording.initial_weights}
            bases |= {f"{before.folder}/{files.WEIGHTS}": before.weights} if before else {}
            return self._whole(
                files.STEP_START, self._load(files.STEP_START, contents.CHANGES), bases, contents.TENSORS
            )
        if self._number == (recording.index.resumed_from.batches if recording.index.resumed_from else 0):
            return recording.initial_weights()
        return before.weights() if before and before.has(files.WEIGHTS) else None

    def changed(self, name: str) -> list[str] | None:
        """Whose weights (`STEP_START`) or optimizer state (`OPTIMIZER_START`) the step before had not left like that.

        None if that is not known.
        """
        changes = self._load(name, contents.CHANGES) if self.has(name) else None
        return list(changes["entries"]) if changes and changes["base"] else None

    def start_optimizer_state(self) -> dict[str, dict[str, Any]] | None:
        """The optimizer's state before this step's update, by parameter; None if it made none, or it is not known."""
        if not self.has(files.OPTIMIZER_START):
            return None
        before = self._before()
        bases = {f"{before.folder}/{files.OPTIMIZER}": lambda: before.optimizer_state()["state"]} if before else {}
        changes = self._load(files.OPTIMIZER_START, contents.OPTIMIZER_START)
        return self._whole(files.OPTIMIZER_START, changes, bases, contents.ENTRIES)

    def start_groups(self) -> list[dict[str, Any]] | None:
        """Settings of the parameter groups with which this step's update was made, as in `optimizer_state`; or None."""
        has = self.has(files.OPTIMIZER_START)
        return self._load(files.OPTIMIZER_START, contents.OPTIMIZER_START)["param_groups"] if has else None

    def applied_gradients(self) -> AppliedGradients | None:
        """What the optimizer used, after clipping; None if it made no step with this batch, or it is not known."""
        if not self.has(files.APPLIED_GRADIENTS):
            return None
        found = self._load(files.APPLIED_GRADIENTS, contents.APPLIED)
        table = self.gradients() if self.has(files.GRADIENTS) else {}
        with damage(self._recording.path / self.folder / files.APPLIED_GRADIENTS):
            for name in found["scaled"]:
                raw, factor = table[name], found["factor"]
                if raw is None or factor is None or factor.numel() != 1:
                    raise ValueError(f"scaled: {name} has nothing to be multiplied")
                table[name] = raw * factor
        return AppliedGradients(
            {**table, **found["entries"]}, found["norm"], found["factor"], found["scaled"], list(found["entries"])
        )

    def facts(self) -> StepFacts | None:
        """Small facts about the step; None in recordings that have none."""
        return self._recording.read_json(f"{self.folder}/{files.FACTS}", StepFacts)

    def operators(self) -> StepOperators | None:
        """The ATen operators of the step; None where they were not recorded."""
        return self._recording.read_json(f"{self.folder}/{files.OPERATORS}", StepOperators)

    def gradients_before(self) -> Mapping[str, str | None] | None:
        """What ``.grad`` held when backward began: None, ``"zero"``, or a digest; None if that is not known."""
        facts = self.facts()
        return facts.gradients_before if facts else None

    def left_gradients(self) -> dict[str, str]:
        """Digests of the gradients that the step before left, as far as they were recorded."""
        before = self._before()
        entries = self._recording.index.tensors.get(f"{before.folder}/{files.GRADIENTS}", {}) if before else {}
        return {name: entry.digest for name, entry in entries.items()}

    def state_at(self, boundary: Boundary | Literal["fetch"]) -> dict[str, bytes] | None:
        """Whole states of the generators, for `base.rng.set_state`; None where they were not kept.

        Kept are those of ``batch_ready`` and of ``fetch``, where the making of the batch began.
        """
        rng = self.rng()
        digests = rng.fetch if boundary == "fetch" else rng.states.get(boundary)
        states = self.generator_states() if digests and self.has(files.GENERATOR_STATES) else {}
        if not digests or any(digest not in states.get(generator, {}) for generator, digest in digests.items()):
            return None
        return {generator: states[generator][digest].numpy().tobytes() for generator, digest in digests.items()}

    def rng(self) -> StepRandom:
        """Digests of every generator's state at the step's boundaries, and the ledger of draws."""
        path = self._recording.listed(f"{self.folder}/{files.RNG}")
        with damage(path):
            raw = json.loads(read_bytes(path))
            raw = schema1.upgrade_rng(raw) if self._recording.index.schema_name == files.SCHEMA_1 else raw
            return StepRandom.model_validate_json(json.dumps(raw))

    def generator_states(self) -> dict[str, dict[str, torch.Tensor]]:
        """Whole states, where a call drew, at the fetch and at batch_ready: of each generator, by digest, its bytes."""
        states = self._load(files.GENERATOR_STATES, contents.STATES)
        with damage(self._recording.path / self.folder / files.GENERATOR_STATES):
            for digest, state in ((d, s) for by_digest in states.values() for d, s in by_digest.items()):
                if hashlib.sha256(state.numpy().tobytes()).hexdigest()[:16] != digest:
                    raise ValueError(f"the state {digest} is another one")
        return states

    def calls(self) -> list[Call]:
        """Every call of every module, in the order in which they started."""
        return self._calls("calls")

    def later_calls(self) -> list[Call]:
        """Calls that began after the loss was known, as when backward runs a part again; numbered on their own."""
        return self._calls("later")

    def _calls(self, key: str) -> list[Call]:
        raw = self._load(files.CALLS, contents.BY_NAME)
        with damage(self._recording.path / self.folder / files.CALLS):
            rows = raw.get(key, [])
            is_1 = self._recording.index.schema_name == files.SCHEMA_1
            calls = contents.CALLS.validate_python(
                schema1.upgrade_calls(rows) if is_1 else [Call(**row) for row in rows]
            )
            for place, call in enumerate(calls):
                known = all(0 <= index < len(calls) for index, _ in call.producers.values())
                if (
                    call.index != place
                    or len(call.args) != len(call.arg_names)
                    or not 0 <= call.start <= call.end
                    or not known
                ):
                    raise ValueError(f"{key}.{place}: its numbers do not fit each other")
            if key == "calls" and [call.name for call in calls] != self._recording.index.calls.get(self._number):
                raise ValueError(f"its calls are not those that {files.INDEX} lists")
            return calls

    def _before(self) -> StepFiles | None:
        """The step before this one, if it was recorded."""
        recorded = self._number - 1 in self._recording.index.steps
        return self._recording.step(self._number - 1, self._rank) if recorded else None

    def _whole(
        self, name: str, changes: Changes, bases: Mapping[str, Callable[[], Mapping[str, Any]]], shape: TypeAdapter[T]
    ) -> T | None:
        """The table of which `changes` were recorded in file `name`; `bases` read what they may build upon.

        None where that file was not recorded.
        """
        base, entries = changes["base"], changes["entries"]
        with damage(self._recording.path / self.folder / name):
            if base and base not in bases:
                raise ValueError(f"base: {base} is not of the step before")
            if base and base not in self._recording.index.files:
                return None
            table = bases[base]() if base else {}
            if missing := [n for n in changes["names"] if n not in entries and n not in table]:
                raise ValueError(f"names: nothing is recorded of {missing[0]}")
            return shape.validate_python({n: entries[n] if n in entries else table[n] for n in changes["names"]})

    def _load(self, name: str, shape: TypeAdapter[T]) -> T:
        return self._recording.load(f"{self.folder}/{name}", shape)
