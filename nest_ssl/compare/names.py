"""A candidate whose modules have other names than the reference's, read as if they had the reference's.

    encoder.blocks: encoder.layers                    # renamed
    model: ""                                         # wrapped: the reference's root is the candidate's `model`
    encoder.layers.*.attn.inner: encoder.layers.*.self_attn

The left name is the candidate's, * stands for one part of it, and what lies below follows; the longest name that fits
counts. What already has a name that another module is given (a wrapper around it) is left out. What torch.compile has
wrapped needs no map.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.renaming import COMPILED, NameMap, Rename, renaming
from nest_ssl.base.safe_load import load_yaml
from nest_ssl.recording.calls import Call
from nest_ssl.recording.contents import AppliedGradients, OptimizerState, Validation
from nest_ssl.recording.evidence import StepOperators
from nest_ssl.recording.index import StepFacts, StepRandom, Structure
from nest_ssl.recording.reader import Recording
from nest_ssl.recording.step_files import StepFiles

T = TypeVar("T", bound=StepOperators)


def load_names(path: Path) -> Rename:
    """A map of names, from the candidate's to the reference's.

    Raises:
        UserError: the file cannot be read, or is no such map.
    """
    try:
        found = load_yaml(path.read_bytes(), str(path))
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    if not isinstance(found, dict) or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise UserError("no map of names", str(path), "Give a name of the reference for each name of the candidate.")
    if bad := [name for name, target in found.items() if not name or target.count("*") > name.count("*")]:
        raise UserError("no map of names", f"{path}: {bad[0]!r}", "Give each * on the right one on the left.")
    return renaming(found)


def uncompiled(reference: Recording, candidate: Recording) -> Rename | None:
    """What torch.compile wraps, under its own name; None where the candidate has no such wrapper of its own."""
    sides = ({entry.name for entry in side.structure.modules} for side in (reference, candidate))
    wrapped = [any(COMPILED in name.split(".") for name in names) for names in sides]
    return (lambda name: ".".join(part for part in name.split(".") if part != COMPILED)) if wrapped == [0, 1] else None


class Renamed(Recording):
    """A recording read with other names; everything else is as it was recorded.

    Raises:
        UserError: no name is changed by it, or two things would have one name.
    """

    def __init__(self, original: Recording, rename: Rename) -> None:
        super().__init__(original.path, original.index, verified=True)
        modules = [entry.name for entry in original.structure.modules]
        self._original, self.names = original, NameMap(rename, modules)
        self.other_names = [(name, rename(name)) for name in modules if rename(name) != name]
        if not self.names.given:
            raise UserError("a map of names that fits nothing", str(original.path), "Give names of the candidate.")
        structure = original.structure
        for entries in (modules, [e.name for e in structure.parameters], [e.name for e in structure.buffers]):
            taken: dict[str, str] = {}  # one of two would hide the other, and whatever differs in it
            for name in entries:
                other = taken.setdefault(rename(name), name)
                wraps = not self.names.stays(other) and (not other or name.startswith(f"{other}."))
                if other != name and not wraps:
                    where = f"{original.path}: {other} and {name} are both {rename(name)!r}"
                    raise UserError("a map that gives two things one name", where, "Give each a name of its own.")
        ledger = self.ledger(original.index.ledger)
        calls = {}
        for step, names in original.index.calls.items():
            pairs = [name.rpartition("#")[::2] for name in names]
            calls[step] = [f"{rename(module)}#{call}" for module, call in pairs if self.names.stays(module)]
        self.index = original.index.model_copy(update={"calls": calls, "ledger": ledger})

    def ledger(self, entries: list[Any] | None) -> list[Any] | None:
        """Draws, by the modules that made them."""
        if entries is None:
            return None
        rename = self.names.rename
        return [e if e.module is None else e.model_copy(update={"module": rename(e.module)}) for e in entries]

    def operators(self, found: T) -> T:
        """Operators, by the calls that ran them; those of a wrapper belong to the call around it."""

        def call(name: str) -> str:
            while name and not self.names.stays(name.rpartition("#")[0]):
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
            if self.names.stays(name.rpartition("#")[0])
        }
        return found.model_copy(update={"operators": renamed, "enclosing": enclosing})

    @property
    def structure(self) -> Structure:  # type: ignore[override]
        found = self._original.structure
        update = {
            kind: [
                entry.model_copy(update={"name": self.names.rename(entry.name)})
                for entry in getattr(found, kind)
                if self.names.stays(entry.name)
            ]
            for kind in ("modules", "parameters", "buffers")
        }
        shared = None if found.shared is None else [self.names.names(group) for group in found.shared]
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
        return {"state": self._names.table(found["state"]), "param_groups": self._groups(found["param_groups"])}

    def start_optimizer_state(self) -> dict[str, dict[str, Any]] | None:
        found = super().start_optimizer_state()
        return None if found is None else self._names.table(found)

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
        return self._names.table(super().left_gradients())

    def facts(self) -> StepFacts | None:
        found = super().facts()
        before = None if found is None else found.gradients_before
        tables = {"training": found.training, "gradients_before": before} if found else {}
        update = {name: self._names.table(table) for name, table in tables.items() if table is not None}
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
            replace(call, module=self._names.rename(call.module)) for call in calls if self._names.stays(call.module)
        ]

    def _groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**group, "params": [self._names.rename(name) for name in group["params"]]} for group in groups]
