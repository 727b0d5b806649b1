"""Rung 2: modules, parameters and buffers: names, classes, shapes, dtypes and flags."""

from __future__ import annotations

from typing import Any

from nest_ssl.compare.declared import Entry, apply_declared
from nest_ssl.compare.result import MISSING_CANDIDATE, MISSING_REFERENCE, SETTING, Declared, Difference, Place, Tally
from nest_ssl.compare.settings import typed_diff
from nest_ssl.recording.reader import Recording

ROOT = ""


def compare_structure(reference: Recording, candidate: Recording, entries: list[Entry]) -> tuple[Tally, list[Declared]]:
    """Compare what the models are made of; differences in the reference's order of modules."""
    tally = Tally("structure")
    ours, theirs = (_by_name(recording.structure["modules"]) for recording in (reference, candidate))
    one_sided = {
        "reference": [name for name in ours if name not in theirs],
        "candidate": [name for name in theirs if name not in ours],
    }
    declared, complaints = apply_declared(entries, reference, candidate, one_sided)
    excused = {name for entry in declared for name in entry.modules}
    _compare_modules(tally, ours, theirs, excused)
    for kind in ("parameters", "buffers"):
        _compare_entries(tally, kind, *(_by_name(recording.structure[kind]) for recording in (reference, candidate)))
    for complaint in complaints:
        place = Place("structure", tensor="declared")
        tally.differing += 1
        tally.differences.append(Difference(place, SETTING, complaint, "declared.yaml"))
    return tally, declared


def _by_name(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in entries}


def _compare_modules(
    tally: Tally, ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]], excused: set[str]
) -> None:
    if ROOT in ours and ROOT in theirs and _unqualified(ours[ROOT]) != _unqualified(theirs[ROOT]):
        # The root is the trainer's own wrapping; its name says nothing about the numbers.
        tally.notes.append(f"The model's class is {ours[ROOT]['class']} against {theirs[ROOT]['class']}.")
    for name in dict.fromkeys([*ours, *theirs]):
        place = Place("structure", module=name)
        if name in excused:
            continue
        if name not in theirs:
            tally.missing(place, MISSING_CANDIDATE, _unqualified(ours[name])["class"])
        elif name not in ours:
            tally.missing(place, MISSING_REFERENCE, _unqualified(theirs[name])["class"])
        else:
            drop = {"class"} if name == ROOT else set()
            pair = [{k: v for k, v in _unqualified(side[name]).items() if k not in drop} for side in (ours, theirs)]
            tally.item("modules", _changes(place, *pair))


def _compare_entries(
    tally: Tally, kind: str, ours: dict[str, dict[str, Any]], theirs: dict[str, dict[str, Any]]
) -> None:
    for name in dict.fromkeys([*ours, *theirs]):
        place = tensor_place("structure", name)
        if name not in theirs:
            tally.missing(place, MISSING_CANDIDATE, _outline(ours[name]))
        elif name not in ours:
            tally.missing(place, MISSING_REFERENCE, _outline(theirs[name]))
        else:
            tally.item(kind, _changes(place, ours[name], theirs[name]))


def _changes(place: Place, ours: dict[str, Any], theirs: dict[str, Any]) -> list[Difference]:
    if repr(ours) == repr(theirs):  # typed too, and thousands of times as fast; nearly all entries are equal
        return []
    found = []
    for key in dict.fromkeys(change.path.split(".")[0] for change in typed_diff(ours, theirs)):
        name = f"{place.tensor}.{key}" if place.tensor else key
        here = Place(place.rung, module=place.module, tensor=name)
        found.append(Difference(here, SETTING, ours.get(key, "absent"), theirs.get(key, "absent")))
    return found


def tensor_place(rung: str, name: str, step: int | None = None, rank: int = 0, prefix: str = "") -> Place:
    """The place of parameter or buffer `name`: its module and its own name."""
    module, _, own = name.rpartition(".")
    return Place(rung, step, module, None, prefix + own, rank)


def _unqualified(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "class": str(entry["class"]).rpartition(".")[2]}


def _outline(entry: dict[str, Any]) -> str:
    return f"{list(entry['shape'])} {entry['dtype']}"
