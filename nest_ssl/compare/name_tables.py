"""Tables by name, read under a map of names: tensors are split, fused and turned as the map says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.base.renaming import NameMap
from nest_ssl.compare.name_map import Entry, Match, Names
from nest_ssl.recording.index import Index, Structure
from nest_ssl.recording.layout import GRADIENTS, WEIGHTS
from nest_ssl.recording.tensors import describe_tensor

V = TypeVar("V")
SIGNED = ("exp_avg", "momentum_buffer", "grad_avg")  # states of optimizers that go with the sign of the gradient
# What the parts of an entry become: the candidate's values, in order, to the reference's; None: to nothing.
Change = Callable[[Entry, list[V]], list[V] | None]


class NameTables(NameMap):
    """The names of one recording, of its parameters and buffers too.

    Args:
        rename: the map.
        index, structure: of the recording; one that was imported may have names that its structure does not.
    """

    def __init__(self, rename: Names, index: Index, structure: Structure) -> None:
        self.modules = [entry.name for entry in structure.modules]
        self.stored = [[entry.name for entry in kind] for kind in (structure.parameters, structure.buffers)]
        if index.imported is not None:
            self.modules += dict.fromkeys(name.rpartition("#")[0] for names in index.calls.values() for name in names)
            tables = [table for file, table in index.tensors.items() if Path(file).name in (WEIGHTS, GRADIENTS)]
            self.stored = [[*dict.fromkeys([*self.stored[0], *(name for table in tables for name in table)])]]
        super().__init__(rename, self.modules)
        self.map = rename
        self.matched = {name: match for names in self.stored for name in names if (match := rename.match(name))}

    def table(self, values: Mapping[str, V], change: Change[V] | None = None) -> dict[str, V]:
        """A table by name; `change` makes the values of what an entry changes, by default of tensors.

        Raises:
            UserError: a tensor has no shape for what the map does to it.
        """
        made: dict[str, V] = {}
        parts: dict[Any, dict[int, tuple[str, Match, V]]] = {}
        for name, value in values.items():
            match = self.map.match(name)
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
                where = f"{match.entry.where}, of {', '.join(names)}: {error}"
                raise UserError("a map that does not fit", where, "Mend it, or see nest-ssl map check.") from error
            made |= zip(match.names(), changed, strict=True) if changed is not None else ()
        return made

    def names(self, names: Iterable[str]) -> list[str]:
        """Names of parameters and buffers; of what is fused once."""
        return list(dict.fromkeys(target for name in names if self.stays(name) for target in self.targets(name)))

    def targets(self, name: str) -> list[str]:
        """The reference's names of a parameter or buffer."""
        match = self.map.match(name)
        return match.names() if match else [name]

    def refuse_two_of_one_name(self, where: str) -> None:
        """One of the two would hide the other, and whatever differs in it.

        Raises:
            UserError: two modules, parameters or buffers would have one name, and are no parts of one.
        """
        named: list[tuple[list[str], Callable[[str], list[str]]]]
        named = [(self.modules, lambda name: [self.rename(name)]), *((names, self.targets) for names in self.stored)]
        for names, targets in named:
            taken: dict[str, str] = {}
            for name, target in ((one, target) for one in names for target in targets(one)):
                other = taken.setdefault(target, name)
                wraps = not self.stays(other) and (not other or name.startswith(f"{other}."))
                parts = [self.matched.get(one) for one in (name, other)]
                fused = all(one and len(one.entry.sources) > 1 and one.key == parts[0].key for one in parts)  # type: ignore[union-attr]
                if other != name and not wraps and not fused:
                    what = f"{where}: {other} and {name} are both {target!r}"
                    raise UserError("a map that gives two things one name", what, "Give each a name of its own.")


def changed_tensors(entry: Entry, values: list[Any]) -> list[Any]:
    """Tensors; where backward reached no part of a parameter it reached none of what is made of it."""
    if all(value is None for value in values):
        return [None] * len(entry.targets)
    if any(value is None for value in values):
        raise ValueError("backward reached some of them and not the others")
    return list(entry.changed(values))


def changed_state(entry: Entry, values: list[dict[str, Any]]) -> list[dict[str, Any]]:
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


def first_of(entry: Entry, values: list[Any]) -> list[Any]:
    """Of what is no tensor, the first part's for all."""
    return [values[0]] * len(entry.targets)
