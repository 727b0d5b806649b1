"""The reference, as far as a candidate that was imported can be held against it.

A folder of tensors knows no modules, no settings and not every call. What it does not have is not missing, as with a
recorder that had it: it is left out on both sides, and the comparison says so and is inconclusive at best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from nest_ssl.base.renaming import COMPILED
from nest_ssl.compare.names import Renamed
from nest_ssl.compare.values import flatten
from nest_ssl.recording.calls import Call
from nest_ssl.recording.importing import INITIAL
from nest_ssl.recording.index import ModuleEntry, ParameterEntry, Structure
from nest_ssl.recording.layout import GRADIENTS
from nest_ssl.recording.reader import Recording
from nest_ssl.recording.step_files import StepFiles

_LIST = "torch.nn.modules.container.ModuleList"
# Facts of the experiment that a folder of tensors does not say.
_UNKNOWN = ("generation", "data", "flags", "init_from", "packages", "device", "cuda", "threads", "environment", "rng",
            "ledger")  # fmt: skip


def seen_by(own: Recording, other: Recording, calls: list[Call]) -> list[Call]:
    """Those of one side's calls that the recorder of the other side would have recorded, by its level.

    A call of a module that the other side does not have at all is kept: that is a difference. So is any of a module
    of which the other side has calls, whatever its level says: what is a list of blocks is known here by name alone.
    """
    level = other.index.level
    if level is None:
        return calls
    recorded = other.original if isinstance(other, Renamed) else other  # under the names that its level was given for
    modules = {entry.name: _class_of(entry) for entry in recorded.structure.modules}
    around = _around_calls(recorded)
    lists = [name for name, of in modules.items() if of == _LIST or _plain(name) in around]
    if level == own.index.level:  # then of what one recorder takes for a list of blocks the other takes the like
        around = _around_calls(own)
        alike = {entry.name: _class_of(entry) for entry in own.structure.modules if _plain(entry.name) in around}
        read = {name: other.names.rename(name) if isinstance(other, Renamed) else name for name in modules}
        ran = _with_gradients(recorded)  # and yet without a call: its recorder takes it for no list
        lists += [name for name, of in modules.items() if alike.get(read[name]) == of and name not in ran]
    chosen = level.chosen([*modules], lists)
    if chosen is None:
        return calls
    left_out = {other.names.rename(n) if isinstance(other, Renamed) else n for n in modules.keys() - chosen - {""}}
    left_out -= {other.names.rename(n) for n in chosen} if isinstance(other, Renamed) else chosen
    left_out -= {name.rpartition("#")[0] for names in other.index.calls.values() for name in names}
    return [call for call in calls if call.module not in left_out]


def _class_of(entry: ModuleEntry) -> str:
    """Of torch's own with its package: another's may have the name alone."""
    name = entry.module_class
    return name if name.startswith("torch.") else name.rpartition(".")[2]


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != COMPILED)


def _around_calls(recording: Recording) -> set[str]:
    """What modules with recorded calls stand in: below the model's own parts only blocks of lists have any."""
    names = {name.rpartition("#")[0] for names in recording.index.calls.values() for name in names}
    return {_plain(name).rpartition(".")[0] for name in names}


def _with_gradients(recording: Recording) -> set[str]:
    """Modules in which, at any depth, a parameter has a gradient: they ran."""
    names = {name for file, table in recording.index.tensors.items() if file.endswith(GRADIENTS) for name in table}
    return {".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts))}


class Narrowed(Recording):
    """`reference` as far as `candidate`, which was imported, has the like."""

    def __init__(self, reference: Recording, candidate: Recording) -> None:
        super().__init__(reference.path, reference.index, verified=True)
        self._original, self._candidate = reference, candidate
        self.has = candidate.index.imported or []
        update = {name: getattr(candidate.index, name) for name in _UNKNOWN}
        update |= {} if candidate.index.seed is not None else {"seed": None}
        self.index = reference.index.model_copy(update=update)

    def described(self, steps: Sequence[int]) -> dict[str, Any]:
        """What the candidate has, and how many calls of these steps it lacks, for the report."""
        lacking = sum(len(self.index.calls[step]) - len(self._candidate.index.calls[step]) for step in steps)
        return {"has": ", ".join(self.has), "count": max(lacking, 0)}

    @cached_property
    def config(self) -> dict[str, Any]:
        """What both say, if the candidate says anything."""
        return self._original.config if self._candidate.config else {}

    @cached_property
    def structure(self) -> Structure:
        """No modules; buffers are parameters, for which they are passes for."""
        found = self._original.structure
        if INITIAL not in self.has:
            return Structure()
        parameters = [entry.model_copy(update={"requires_grad": True}) for entry in found.parameters]
        for e in found.buffers:
            parameters.append(ParameterEntry(name=e.name, shape=e.shape, dtype=e.dtype, requires_grad=True))
        return Structure(parameters=parameters)

    def initial_weights(self) -> dict[str, Tensor]:
        return self._original.initial_weights() if INITIAL in self.has else {}

    def validations(self) -> None:
        return None

    def step(self, number: int, rank: int = 0) -> StepFiles:
        return _NarrowedStep(self, self._original, self._candidate, number, rank)


class _NarrowedStep(StepFiles):
    def __init__(self, narrowed: Narrowed, original: Recording, candidate: Recording, number: int, rank: int) -> None:
        super().__init__(original, number, rank)
        self._candidate, self._has = candidate, narrowed.has
        self._original = original.step(number, rank)

    def calls(self) -> list[Call]:
        """Those that the candidate has too, with inputs and gradients where it has them."""
        other = {call.name: call for call in self._candidate.step(self._number, self._rank).calls()}
        kept = []
        for call in self._original.calls():
            if call.name not in other:
                continue
            twin = other[call.name]
            inputs = {name: value for name, value in call.inputs.items() if name in twin.inputs}
            grads = {path: gradient for path, gradient in call.output_grads.items() if path in twin.output_grads}
            bare = replace(call, training=twin.training, args=[], arg_names=[], producers={})
            bare = replace(bare, output=_as_far_as(call.output, twin.output))
            kept.append(replace(bare, kwargs=inputs, output_grads=grads))
        return kept


def _as_far_as(output: Any, imported: Any) -> Any:
    """Of several outputs those that were imported; nothing of a call of which only inputs were."""
    if imported is None:
        return None
    found, had = flatten(output), flatten(imported)
    return {path: found[path] for path in had if path in found} if had.keys() < found.keys() else output
