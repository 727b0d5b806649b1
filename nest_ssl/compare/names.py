"""A candidate whose modules and tensors have other names or layouts than the reference's, read as if it had those.

What already has a name that another module is given (a wrapper around it) is left out. What torch.compile has wrapped
needs no map.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.base.renaming import COMPILED
from nest_ssl.compare.name_map import Names
from nest_ssl.compare.name_tables import NameTables, changed_entries, changed_state, first_of
from nest_ssl.recording.calls import Call
from nest_ssl.recording.contents import AppliedGradients, OptimizerState, Validation
from nest_ssl.recording.evidence import StepOperators
from nest_ssl.recording.index import StepFacts, StepRandom, Structure
from nest_ssl.recording.reader import Recording
from nest_ssl.recording.step_files import StepFiles

T = TypeVar("T", bound=StepOperators)


def uncompiled(reference: Recording, candidate: Recording) -> Names | None:
    """What torch.compile wraps, under its own name; None where the candidate alone has no such wrapper."""
    sides = ({entry.name: entry.name.split(".") for entry in one.structure.modules} for one in (reference, candidate))
    without, wrapped = ({n: parts for n, parts in names.items() if parts[-1] == COMPILED} for names in sides)
    given = {name: ".".join(part for part in parts if part != COMPILED) for name, parts in wrapped.items()}
    return Names(given, "torch.compile") if given and not without else None


def compiled_in(recording: Recording) -> list[str]:
    """What torch.compile wraps in it, as it is read; empty where that is the model itself."""
    found = recording.original if isinstance(recording, Renamed) else recording
    names = [entry.name.split(".") for entry in found.structure.modules]
    return [".".join(part for part in parts if part != COMPILED) for parts in names if parts[-1] == COMPILED]


class Renamed(Recording):
    """A recording read with other names; numbers are as they were recorded, but for what the map says.

    Raises:
        UserError: no name is changed by it, two things would have one name, or a tensor has no shape for it.
    """

    def __init__(self, original: Recording, rename: Names) -> None:
        super().__init__(original.path, original.index, verified=True)
        self._original, self.names = original, NameTables(rename, original.index, original.structure)
        if not self.names.given and not self.names.matched:
            raise UserError("a map of names that fits nothing", str(original.path), "Give names of the candidate.")
        self.names.refuse_two_of_one_name(str(original.path))
        ledger = self.ledger(original.index.ledger)
        called = {step: [name.rpartition("#")[::2] for name in names] for step, names in original.index.calls.items()}
        # A model that is compiled as a whole is watched from outside alone, in the wrapper's name.
        self._inner_root = any(module and not rename(module) for pairs in called.values() for module, _ in pairs)
        calls = {
            step: [f"{rename(module)}#{call}" for module, call in pairs if self.is_read(module)]
            for step, pairs in called.items()
        }
        self.index = original.index.model_copy(update={"calls": calls, "ledger": ledger})

    @property
    def original(self) -> Recording:
        """As it was recorded."""
        return self._original

    def is_read(self, module: str) -> bool:
        """Whether calls of it are: not those of a wrapper, but for the model's own where nothing else stands for it."""
        return self.names.stays(module) or not (module or self._inner_root)

    def described(self) -> dict[str, Any]:
        """How many names are read as others, and tensors changed, for the report."""
        changed = [name for name, match in self.names.matched.items() if match.entry.settings]
        count = sum(map(len, self.names.stored))
        return {"map": self.names.map.where, "count": count, "changed": len(changed)}

    def ledger(self, entries: list[Any] | None) -> list[Any] | None:
        """Draws, by the modules that made them."""
        if entries is None:
            return None
        rename = self.names.rename
        return [e if e.module is None else e.model_copy(update={"module": rename(e.module)}) for e in entries]

    def operators(self, found: T) -> T:
        """Operators, by the calls that ran them; those of a wrapper belong to the call around it."""

        def call(name: str) -> str:
            while name and not self.is_read(name.rpartition("#")[0]):
                name = found.enclosing.get(name, "")
            module, _, number = name.rpartition("#")
            return f"{self.names.rename(module)}#{number}" if name else ""

        renamed = []
        for each in found.operators:
            module, number = each.module, each.call
            if module is not None and number is None:  # of a parameter, in the optimizer
                module = self.names.rename(module)
            elif module is not None:
                name = call(f"{module}#{number}")
                module, number = (name.rpartition("#")[0], int(name.rpartition("#")[2])) if name else (None, None)
            renamed.append(each.model_copy(update={"module": module, "call": number}))
        enclosing = {
            call(name): call(around)
            for name, around in found.enclosing.items()
            if self.is_read(name.rpartition("#")[0])
        }
        return found.model_copy(update={"operators": renamed, "enclosing": enclosing})

    @property
    def structure(self) -> Structure:  # type: ignore[override]
        found, names = self._original.structure, self.names
        modules = [e.model_copy(update={"name": names.rename(e.name)}) for e in found.modules if names.stays(e.name)]
        update: dict[str, Any] = {"modules": modules}
        for kind in ("parameters", "buffers"):
            table = names.table({entry.name: entry for entry in getattr(found, kind)}, changed_entries)
            update[kind] = [entry.model_copy(update={"name": name}) for name, entry in table.items()]
        shared = None if found.shared is None else [names.names(group) for group in found.shared]
        return found.model_copy(update={**update, "shared": shared})

    def validations(self) -> list[Validation] | None:
        found = super().validations()
        for output in (o for each in found or [] for batch in each["batches"] for o in batch["outputs"]):
            output["module"] = self.names.rename(output["module"])
        return found

    def initial_weights(self) -> dict[str, Tensor]:
        return self.names.table(self._original.initial_weights())

    def step(self, number: int, rank: int = 0) -> StepFiles:
        return _RenamedStep(self, self._original, number, rank)


class _RenamedStep(StepFiles):
    def __init__(self, renamed: Renamed, original: Recording, number: int, rank: int) -> None:
        super().__init__(original, number, rank)
        self._renamed, self._names = renamed, renamed.names

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
            "state": self._names.table(found["state"], changed_state),
            "param_groups": self._groups(found["param_groups"]),
        }

    def start_optimizer_state(self) -> dict[str, dict[str, Any]] | None:
        found = super().start_optimizer_state()
        return None if found is None else self._names.table(found, changed_state)

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
        update = {name: self._names.table(table, first_of) for name, table in tables.items() if table is not None}
        return found and found.model_copy(update=update)

    def rng(self) -> StepRandom:
        found = super().rng()
        return found.model_copy(update={"ledger": self._renamed.ledger(found.ledger)})

    def operators(self) -> StepOperators | None:
        found = super().operators()
        return found and self._renamed.operators(found)

    def _calls(self, key: str) -> list[Call]:
        calls = super()._calls(key)
        return [
            replace(call, module=self._names.rename(call.module))
            for call in calls
            if self._renamed.is_read(call.module)
        ]

    def _groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**group, "params": self._names.names(group["params"])} for group in groups]
