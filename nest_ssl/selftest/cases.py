"""The form of a case, and the catalogue of all of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nest_ssl.base.errors import UserError
from nest_ssl.base.spelling import did_you_mean
from nest_ssl.report.detection import comparer_hash

CATALOGUE = Path(__file__).with_name("catalogue")
PLACEHOLDER = "SIZE"  # in the new line of a fault that has a size
REWRITES = ("rewrites", "refactorings")  # files of cases that are no faults
PAIRS = "pairs"
Recipe = Literal[
    "plain", "full", "accumulated", "half", "resumed", "started", "ranks", "listed", "convolutional", "local"
]
Places = frozenset[tuple[str, str | None]]  # phase and module


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Edit(_Strict):
    """One replacement in the port's source.

    Args:
        file: below `nest_ssl/`.
        old: text that stands in it exactly once.
        new: what takes its place.
    """

    file: str
    old: str
    new: str


class Case(_Strict):
    """A fault, a pair of faults, or a rewrite.

    Args:
        name: in a few words; unique.
        group: the kind of fault, which is the name of its file; `REWRITES` and `PAIRS` are groups too.
        kinds: of fault, where they are not its group's: of a pair, those of its members.
        edits: of the port's source.
        settings: of the candidate alone, which make it another experiment.
        recipe: the experiment in which it shows; see `trial.RECIPES`.
        verdict: that the comparison must end with.
        born: ``phase module`` of each place where it must be said to be born, ``both module`` for forward and backward
            of one, the phase alone where it is no module's.
        also: places that may be named beside these; ``backward *`` for all modules.
        size: of the fault, for `PLACEHOLDER`; it is made ten times smaller until it is no longer caught.
        quick: whether `make test` runs it too.
    """

    name: str
    group: str
    kinds: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()
    settings: tuple[str, ...] = ()
    recipe: Recipe = "plain"
    verdict: Literal["identical", "equivalent", "diverged", "another experiment"] = "diverged"
    born: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    size: float | None = Field(default=None, gt=0)
    quick: bool = False

    @model_validator(mode="after")
    def _sized(self) -> Case:
        if (self.size is not None) != any(PLACEHOLDER in edit.new for edit in self.edits):
            raise ValueError(f"a size needs {PLACEHOLDER} in a new line, and {PLACEHOLDER} a size")
        if self.is_fault != bool(self.born):
            raise ValueError("a fault is born somewhere, and a rewrite nowhere")
        return self

    @property
    def is_fault(self) -> bool:
        return self.group not in REWRITES

    @property
    def expected_kinds(self) -> tuple[str, ...]:
        """The kinds of fault that have to be named."""
        return tuple(dict.fromkeys(self.kinds)) or ((self.group,) if self.is_fault else ())

    def edits_at(self, size: float | None) -> list[Edit]:
        """The edits with the size put in."""
        value = repr(self.size if size is None else size)
        return [edit.model_copy(update={"new": edit.new.replace(PLACEHOLDER, value)}) for edit in self.edits]

    def key(self, size: float | None, *sources: str) -> str:
        """What its result depends on, hashed: not what is expected of it."""
        content: Any = [self.recipe, list(self.settings), [edit.model_dump() for edit in self.edits_at(size)], sources]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def places(texts: Sequence[str]) -> Places:
    """``both encoder`` as its two phases, ``optimizer`` as that phase of no module."""
    phases = ("initial weights", "between steps", "another experiment")
    found = set[tuple[str, str | None]]()
    for text in texts:
        phase = next((phase for phase in phases if text.startswith(phase)), text.split(" ")[0])
        module = text.removeprefix(phase).strip()
        of_none = None if module == "" else "" if module == "root" else module
        modules = [of_none] if of_none is None else expanded(of_none)
        found |= {(each, one) for each in (("forward", "backward") if phase == "both" else (phase,)) for one in modules}
    return frozenset(found)


def expanded(name: str) -> list[str]:
    """``layers.{0,1}`` as both names, for every pair of braces."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def read_catalogue(folder: Path = CATALOGUE) -> list[Case]:
    """All cases, file by file in the order of their names.

    Raises:
        UserError: a case that is not in order, or two of one name.
    """
    cases: dict[str, Case] = {}
    pairs: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.yaml")):
        for given in yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader):
            if path.stem == PAIRS:
                pairs.append(given)
                continue
            case = _case(path, {"group": path.stem.replace("_", " "), **given})
            if case.name in cases:
                raise UserError("two cases of one name", f"{path}: {case.name}", "Give one another name.")
            cases[case.name] = case
    for given in pairs:
        for name in given["faults"]:
            if name not in cases:
                raise UserError("no such fault", f"{PAIRS}.yaml: {name}", did_you_mean(name, cases))
        cases_of = [cases[name] for name in given["faults"]]
        pair = {
            "name": " + ".join(case.name for case in cases_of),
            "group": PAIRS,
            "kinds": [case.group for case in cases_of],
            "edits": [edit for case in cases_of for edit in case.edits_at(None)],
            "born": [place for case in cases_of for place in case.born],
            "also": [place for case in cases_of for place in case.also],
        }
        case = _case(folder / f"{PAIRS}.yaml", {**pair, **{k: v for k, v in given.items() if k != "faults"}})
        cases[case.name] = case
    return list(cases.values())


def _case(path: Path, given: dict[str, Any]) -> Case:
    shorthand = {key: given.pop(key) for key in ("file", "old", "new") if key in given}
    try:
        return Case.model_validate({"edits": [shorthand] if shorthand else [], **given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"{path.name}: {given.get('name', given)}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError("a case that is not in order", where, "Correct the catalogue.") from error


def sample(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of the cases that need no other recording than the quick ones: others for each state of the comparer."""
    others = [case for case in cases if case.recipe == "plain" and not case.quick]
    return sorted(others, key=lambda case: case.key(None, comparer_hash()))[:count]


def select(cases: Sequence[Case], patterns: str) -> Iterator[Case]:
    """Those whose name or group matches one of the patterns, divided by commas; all for none."""
    wanted = [pattern.strip() for pattern in patterns.split(",") if pattern.strip()]
    for case in cases:
        if not wanted or any(fnmatchcase(text, pattern) for text in (case.name, case.group) for pattern in wanted):
            yield case
