"""A candidate whose modules and tensors have other names or layouts than the reference's, read as if it had those.

What already has a name that another module is given (a wrapper around it) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.compare.name_map import Entry, Match, Names, load_names, renaming
from nest_ssl.recording.calls import Call
from nest_ssl.recording.contents import AppliedGradients, OptimizerState, Validation
from nest_ssl.recording.index import StepFacts, StepRandom, Structure
from nest_ssl.recording.reader import Recording
from nest_ssl.recording.step_files import StepFiles
from nest_ssl.recording.tensors import describe_tensor

__all__ = ["Names", "Renamed", "load_names", "renaming"]
V = TypeVar("V")
SIGNED = ("exp_avg", "momentum_buffer", "grad_avg")  # states of optimizers that go with the sign of the gradient
# What the parts of an entry become: the candidate's values, in order, to the reference's; None: to nothing.
Change = Callable[[Entry, list[V]], list[V] | None]


class Renamed(Recording):
    """A recording read with other names; numbers are as they were recorded, but for what the map says.

    Raises:
        UserError: no name is changed by it, two things would have one name, or a tensor has no shape for it.
    """

    def __init__(self, original: Recording, rename: Names) -> None:
        super().__init__(original.path, original.index, verified=True)
        self._original, self._rename = original, rename
        modules = [entry.name for entry in original.structure.modules]
        self._given = {rename(name) for name in modules if rename(name) != name}
        stored = [entry.name for kind in ("parameters", "buffers") for entry in getattr(original.structure, kind)]
        self.matched = {name: match for name in stored if (match := rename.match(name))}
        if not self._given and not self.matched:
            raise UserError("a map of names that fits nothing", str(original.path), "Give names of the candidate.")
        structure = original.structure
        of_modules: tuple[list[str], Callable[[str], list[str]]] = (modules, lambda name: [rename(name)])
        stored_as = [([e.name for e in kind], self._tensor_names) for kind in (structure.parameters, structure.buffers)]
        for entries, targets in (of_modules, *stored_as):
            taken: dict[str, str] = {}  # one of two would hide the other, and whatever differs in it
            for name in entries:
                for target in targets(name):
                    other = taken.setdefault(target, name)
                    wraps = not self.stays(other) and (not other or name.startswith(f"{other}."))
                    parts = name in self.matched and other in self.matched
                    together = parts and self.matched[name].key == self.matched[other].key
                    if other != name and not wraps and not (together and len(self.matched[name].entry.sources) > 1):
                        where = f"{original.path}: {other} and {name} are both {target!r}"
                        raise UserError("a map that gives two things one name", where, "Give each a name of its own.")
        ledger = self.ledger(original.index.ledger)
        calls = {}
        for step, names in original.index.calls.items():
            pairs = [name.rpartition("#")[::2] for name in names]
            calls[step] = [f"{rename(module)}#{call}" for module, call in pairs if self.stays(module)]
        self.index = original.index.model_copy(update={"calls": calls, "ledger": ledger})

    def described(self) -> dict[str, Any]:
        """How many names are read as others, and tensors changed, for the report."""
        found = self._original.structure
        changed = [name for name, match in self.matched.items() if match.entry.settings]
        count = len(found.parameters) + len(found.buffers)
        return {"map": self._rename.where, "count": count, "changed": len(changed)}

    def stays(self, name: str) -> bool:
        """Whether what has this name is not in the place of something that is given it."""
        return self._rename(name) != name or name not in self._given

    def table(self, values: Mapping[str, V], change: Change[V] | None = None) -> dict[str, V]:
        """A table by name; `change` makes the values of what an entry changes, by default of tensors."""
        made: dict[str, V] = {}
        parts: dict[Any, dict[int, tuple[str, Match, V]]] = {}
        for name, value in values.items():
            match = self._rename.match(name)
            if match and match.entry.settings:
                parts.setdefault(match.key, {})[match.source] = name, match, value
            elif self.stays(name):
                made[match.names()[0] if match else name] = value
        for found in parts.values():
            names = [name for name, _, _ in found.values()]
            _, match, _ = next(iter(found.values()))
            if len(found) < len(match.entry.sources):  # a part is missing: left under their own names, and seen
                made |= {name: value for name, _, value in found.values()}
                continue
            try:
                ordered = [found[place][2] for place in sorted(found)]
                changed = (change or changed_tensors)(match.entry, ordered)
            except ValueError as error:
                fix = "Mend the map, or see nest-ssl map check."
                raise UserError("a map that does not fit", f"{', '.join(names)}: {error}", fix) from error
            made |= zip(match.names(), changed, strict=True) if changed is not None else ()
        return made

    def names(self, names: Iterable[str]) -> list[str]:
        """Names of parameters and buffers; of what is fused once."""
        return list(dict.fromkeys(target for name in names if self.stays(name) for target in self._tensor_names(name)))

    def _tensor_names(self, name: str) -> list[str]:
        match = self._rename.match(name)
        return match.names() if match else [name]

    def ledger(self, entries: list[Any] | None) -> list[Any] | None:
        """Draws, by the modules that made them."""
        if entries is None:
            return None
        return [e if e.module is None else e.model_copy(update={"module": self._rename(e.module)}) for e in entries]

    @property
    def structure(self) -> Structure:  # type: ignore[override]
        found = self._original.structure
        modules = [e.model_copy(update={"name": self._rename(e.name)}) for e in found.modules if self.stays(e.name)]
        update: dict[str, Any] = {"modules": modules}
        for kind in ("parameters", "buffers"):
            table = self.table({entry.name: entry for entry in getattr(found, kind)}, changed_entries)
            update[kind] = [entry.model_copy(update={"name": name}) for name, entry in table.items()]
        shared = None if found.shared is None else [self.names(group) for group in found.shared]
        return found.model_copy(update={**update, "shared": shared})

    def validations(self) -> list[Validation] | None:
        found = super().validations()
        for output in (o for each in found or [] for batch in each["batches"] for o in batch["outputs"]):
            output["module"] = self._rename(output["module"])
        return found

    def initial_weights(self) -> dict[str, Tensor]:
        return self.table(self._original.initial_weights())

    def step(self, number: int, rank: int = 0) -> StepFiles:
        return _RenamedStep(self, self._original, number, rank)


class _RenamedStep(StepFiles):
    def __init__(self, renamed: Renamed, original: Recording, number: int, rank: int) -> None:
        super().__init__(original, number, rank)
        self._names, self._rename = renamed, renamed._rename

    def gradients(self) -> dict[str, Tensor | None]:
        return self._names.table(super().gradients())

    def weights(self) -> dict[str, Tensor]:
        return self._names.table(super().weights())

    def start_weights(self) -> dict[str, Tensor] | None:
        found = super().start_weights()
        return None if found is None else self._names.table(found)

    def optimizer_state(self) -> OptimizerState:
        found = super().optimizer_state()
        return {
            "state": self._names.table(found["state"], _changed_state),
            "param_groups": self._groups(found["param_groups"]),
        }

    def start_optimizer_state(self) -> dict[str, dict[str, Any]] | None:
        found = super().start_optimizer_state()
        return None if found is None else self._names.table(found, _changed_state)

    def start_groups(self) -> list[dict[str, Any]] | None:
        found = super().start_groups()
        return None if found is None else self._groups(found)

    def applied_gradients(self) -> AppliedGradients | None:
        whole = StepFiles(self._recording, self._number, self._rank).applied_gradients()
        table, names = self._names.table, self._names.names
        return whole and AppliedGradients(
            table(whole.gradients), whole.norm, whole.factor, names(whole.scaled), names(whole.edited)
        )

    def changed(self, name: str) -> list[str] | None:
        found = super().changed(name)
        return None if found is None else self._names.names(found)

    def left_gradients(self) -> dict[str, str]:
        return self._names.table(super().left_gradients(), lambda *_: None)  # what is changed has bits of its own

    def facts(self) -> StepFacts | None:
        found = super().facts()
        before = None if found is None else found.gradients_before
        tables = {"training": found.training, "gradients_before": before} if found else {}

        def first(entry: Entry, values: list[Any]) -> list[Any]:
            return [values[0]] * len(entry.targets)

        update = {name: self._names.table(table, first) for name, table in tables.items() if table is not None}
        return found and found.model_copy(update=update)

    def rng(self) -> StepRandom:
        found = super().rng()
        return found.model_copy(update={"ledger": self._names.ledger(found.ledger)})

    def _calls(self, key: str) -> list[Call]:
        calls = super()._calls(key)
        return [replace(call, module=self._rename(call.module)) for call in calls if self._names.stays(call.module)]

    def _groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**group, "params": self._names.names(group["params"])} for group in groups]


def changed_tensors(entry: Entry, values: list[Any]) -> list[Any]:
    """Tensors; where backward reached no part of a parameter it reached none of what is made of it."""
    if all(value is None for value in values):
        return [None] * len(entry.targets)
    if any(value is None for value in values):
        raise ValueError("backward reached some of them and not the others")
    return list(entry.changed(values))


def _changed_state(entry: Entry, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of an optimizer: what is as large as the parameter is changed like it, what is one number is the first's."""
    made: list[dict[str, Any]] = [{} for _ in entry.targets]
    for key, first in values[0].items():
        parts = [value.get(key) for value in values]
        large = all(isinstance(part, Tensor) and part.dim() > 0 for part in parts)
        changed = entry.changed(parts, key in SIGNED) if large else [first] * len(made)  # type: ignore[arg-type]
        for state, value in zip(made, changed, strict=True):
            state[key] = value
    return made


def changed_entries(entry: Entry, values: list[Any]) -> list[Any]:
    """Of the structure: shape and dtype."""
    empty = [torch.empty(v.shape, dtype=getattr(torch, v.dtype), device="meta") for v in values]
    return [values[0].model_copy(update=describe_tensor(tensor)) for tensor in entry.changed(empty)]
