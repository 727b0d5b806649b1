"""Structural differences that carry no number and are meant: the committed `declared.yaml`, or a user's own list.

    - pattern: spec_augmentation        # a module name; * matches anything
      only_in: nemo                     # the trainer that has it
      not_in: nest                      # the trainer that has not
      reason: NeMo builds it and never calls it

An entry holds for recordings of those two trainers, whichever is the reference. It may excuse a module that has no
parameter, no buffer and no recorded call, and nothing else. An entry that matches nothing in such a pair is out of
date, and an error, unless a module of that name is called on both sides: then it is about another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from nest_ssl.base.errors import UserError
from nest_ssl.base.safe_load import load_yaml, opened
from nest_ssl.compare.comparison import Declared
from nest_ssl.recording.reader import Recording

FILE = Path(__file__).with_name("declared.yaml")
_KEYS = {"pattern", "only_in", "not_in", "reason"}


@dataclass(frozen=True, slots=True)
class Entry:
    pattern: str
    only_in: str
    not_in: str
    reason: str


def load_declared(path: Path = FILE) -> list[Entry]:
    """The entries of a list of declared differences.

    Raises:
        UserError: the file cannot be read or has entries of another shape.
    """
    with opened(path) as stream:
        entries = load_yaml(stream.read(), str(path)) or []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or set(entry) != _KEYS or not all(isinstance(v, str) for v in entry.values()):
            fix = f"Give each entry exactly the texts {', '.join(sorted(_KEYS))}."
            raise UserError("a declared difference of another shape", f"{path}: {entry!r}", fix)
    return [Entry(**entry) for entry in entries]


def apply_declared(
    entries: Sequence[Entry], recordings: dict[str, Recording], one_sided: dict[str, list[str]]
) -> tuple[list[Declared], list[tuple[str, str]]]:
    """Match `entries` with modules that only one side has; all by side, ``"reference"`` or ``"candidate"``.

    Returns:
        The entries about this pair of trainers with the modules that they excuse, and complaints, as (why, what): a
        module that carries numbers, an entry that is out of date.
    """
    found, complaints = [], []
    reference, candidate = (recording.index.trainer.name for recording in recordings.values())
    sides = {(reference, candidate): "reference", (candidate, reference): "candidate"}
    numbered: dict[str, list[str]] = {}  # by side: parameters, buffers, and modules with a recorded call
    for side, recording in recordings.items():
        numbered[side] = [call.rpartition("#")[0] for step in recording.index.calls.values() for call in step]
        numbered[side] += [parameter.name for parameter in recording.structure.parameters]
        numbered[side] += [buffer.name for buffer in recording.structure.buffers]
    for entry in entries:
        here = sides.get((entry.only_in, entry.not_in))
        if here is None:
            continue  # about another pair of trainers
        modules = [name for name in one_sided[here] if fnmatchcase(name, entry.pattern)]
        refused = [name for name in modules if any(f"{other}.".startswith(f"{name}.") for other in numbered[here])]
        complaints += [("carries numbers", name) for name in refused]
        if not modules and not any(fnmatchcase(name, entry.pattern) for name in numbered[here]):
            complaints.append(("no longer a difference", f"{entry.pattern} only in {entry.only_in}"))
        excused = tuple(name for name in modules if name not in refused)
        found.append(Declared(entry.pattern, here, entry.reason, excused))
    return found, complaints
