"""Rung 2: modules, parameters and buffers: names, classes, shapes, dtypes and flags, in the reference's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.comparison import Declared
from nest_ssl.compare.declared import Entry, apply_declared, load_declared
from nest_ssl.compare.findings import Difference, Spot
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.reader import Recording

ROOT = ""
Entries = dict[str, dict[str, Any]]  # what is recorded of a module, parameter or buffer, by its name


def compare_structure(
    sheet: Sheet, reference: Recording, candidate: Recording, entries: Sequence[Entry] | None
) -> list[Declared]:
    modules = [_by_name(recording.structure.modules) for recording in (reference, candidate)]
    declared, complaints = apply_declared(
        load_declared() if entries is None else entries,
        {"reference": reference, "candidate": candidate},
        {
            "reference": [name for name in modules[0] if name not in modules[1]],
            "candidate": [name for name in modules[1] if name not in modules[0]],
        },
    )
    excused = {name for entry in declared for name in entry.modules}
    for side in modules:
        for entry in side.values():  # the package is the trainer's own matter
            entry["class"] = str(entry.pop("module_class")).rpartition(".")[2]
    roots = [side[ROOT].pop("class") for side in modules if ROOT in side]
    if len(set(roots)) == 2:  # the root is the trainer's own wrapping: its name says nothing about the numbers
        sheet.note("model_class", reference=roots[0], candidate=roots[1])
    for name, one, other in pairs(*modules):
        if name not in excused:
            _compare(sheet, "modules", sheet.spot(Address(Kind.MODULE, name), Phase.STRUCTURE), one, other)
    for kind, unit in ((Kind.PARAMETER, "parameters"), (Kind.BUFFER, "buffers")):
        sides = (_by_name(getattr(recording.structure, unit)) for recording in (reference, candidate))
        for name, one, other in pairs(*sides):
            _compare(sheet, unit, sheet.spot(of_entry(kind, name), Phase.STRUCTURE), one, other)
    _compare_memory(sheet, reference.structure.shared, candidate.structure.shared)
    for why, what in complaints:
        spot = sheet.spot(Address(Kind.SETTING, slot="declared"), Phase.STRUCTURE)
        sheet.tally.differing += 1
        sheet.tally.findings.append(spot.finding(Difference.SETTING, why, what))
    return declared


def _compare_memory(sheet: Sheet, reference: list[list[str]] | None, candidate: list[list[str]] | None) -> None:
    """Parameters and buffers in the same memory are trained as one; of older recordings it is not known."""
    if reference is None or candidate is None:
        return
    groups = [{name: group for group in side for name in group} for side in (reference, candidate)]
    for name in {**groups[0], **groups[1]}:
        others = [", ".join(other for other in side.get(name, []) if other != name) for side in groups]
        if others[0] != others[1]:
            spot = sheet.spot(of_entry(Kind.PARAMETER, name, "memory"), Phase.STRUCTURE)
            said = [f"in the memory of {side}" if side else "in memory of its own" for side in others]
            sheet.item("names in shared memory", [spot.finding(Difference.SETTING, *said)])


def _by_name(entries: Sequence[Any]) -> Entries:
    return {entry.name: {key: value for key, value in entry.model_dump().items() if key != "name"} for entry in entries}


def _compare(sheet: Sheet, unit: str, spot: Spot, reference: Any, candidate: Any) -> None:
    if reference is ABSENT:
        sheet.missing(spot.finding(Difference.MISSING_REFERENCE, "absent", _outline(candidate)))
    elif candidate is ABSENT:
        sheet.missing(spot.finding(Difference.MISSING_CANDIDATE, _outline(reference), "absent"))
    else:
        found = []
        for key, one, other in pairs(reference, candidate):
            if repr(one) != repr(other):  # typed: True is not 1
                own = spot._replace(address=replace(spot.address, slot=key))  # of a module; of all else it is inside
                here = spot.inside(key) if spot.address.slot else own
                found.append(here.finding(Difference.SETTING, *("absent" if v is ABSENT else v for v in (one, other))))
        sheet.item(unit, found)


def _outline(entry: dict[str, Any]) -> str:
    return f"{list(entry['shape'])} {entry['dtype']}" if "shape" in entry else str(entry.get("class"))
