"""The short committed list of structural differences that carry no number, `declared.yaml`.

    - pattern: spec_augmentation        # a module name; * matches anything
      only_in: nemo                     # the trainer that has it
      not_in: nest                      # the trainer that has not
      reason: NeMo builds it and never calls it

An entry holds for recordings of those two trainers, whichever is the reference. It may excuse a module that has no
parameter, no buffer and no recorded call, and nothing else. An entry that matches nothing in such a pair is out of
date, and an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from nest_ssl.base.errors import UserError
from nest_ssl.compare.result import Declared
from nest_ssl.recording.reader import Recording

FILE = Path(__file__).with_name("declared.yaml")
KEYS = {"pattern", "only_in", "not_in", "reason"}


@dataclass(frozen=True, slots=True)
class Entry:
    pattern: str
    only_in: str
    not_in: str
    reason: str


def load_declared(path: Path = FILE) -> list[Entry]:
    """The entries of a declared list.

    Raises:
        UserError: the file is missing or has entries of another shape.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, yaml.YAMLError) as error:
        raise UserError("the list of declared differences cannot be read", str(path), "Restore the file.") from error
    return [_entry(entry, path) for entry in entries]


def _entry(entry: Any, path: Path) -> Entry:
    if not isinstance(entry, dict) or set(entry) != KEYS or not all(isinstance(value, str) for value in entry.values()):
        fix = f"Give each entry exactly the texts {', '.join(sorted(KEYS))}."
        raise UserError("a declared difference of another shape", f"{path}: {entry!r}", fix)
    return Entry(**entry)


def apply_declared(
    entries: list[Entry], reference: Recording, candidate: Recording, one_sided: dict[str, list[str]]
) -> tuple[list[Declared], list[str]]:
    """Match `entries` with modules that only one side has.

    Args:
        one_sided: module names by the side that has them, ``"reference"`` or ``"candidate"``.

    Returns:
        The entries about this pair of trainers with the modules that they excuse, and complaints: a module that carries
        numbers, an entry that is out of date.
    """
    found, complaints = [], []
    for entry in entries:
        side = _side(entry, reference, candidate)
        if side is None:
            continue  # about another pair of trainers
        recording = reference if side == "reference" else candidate
        modules = [name for name in one_sided[side] if fnmatchcase(name, entry.pattern)]
        refused = [name for name in modules if carries_numbers(recording, name)]
        complaints += [f"declared, but it carries parameters, buffers or calls: {name}" for name in refused]
        if not modules:
            complaints.append(f"declared, but no longer a difference: {entry.pattern} only in {entry.only_in}")
        excused = tuple(name for name in modules if name not in refused)
        found.append(Declared(entry.pattern, side, entry.reason, excused))
    return found, complaints


def carries_numbers(recording: Recording, module: str) -> bool:
    """Whether a module (or one inside it) has a parameter, a buffer, or a recorded call."""
    prefix = f"{module}."
    entries = [*recording.structure["parameters"], *recording.structure["buffers"]]
    if any(entry["name"].startswith(prefix) for entry in entries):
        return True
    calls = (call.rpartition("#")[0] for calls in recording.index.get("calls", {}).values() for call in calls)
    return any(name == module or name.startswith(prefix) for name in calls)


def _side(entry: Entry, reference: Recording, candidate: Recording) -> str | None:
    names = tuple(recording.index["trainer"].get("name") for recording in (reference, candidate))
    sides = {(entry.only_in, entry.not_in): "reference", (entry.not_in, entry.only_in): "candidate"}
    return sides.get(names)
