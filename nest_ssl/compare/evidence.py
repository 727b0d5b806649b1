"""Opens what was measured about two recordings: replay, float64, noise floor, operators, schedules; see
`recording.evidence`.

A folder of evidence may outlive the recordings that it is about. Each file names them by their seals, and the float64
recordings by the same settings and the same source files: what belongs to others is refused, never used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import ABSENT, leaves, pairs
from nest_ssl.compare.names import Renamed
from nest_ssl.recording import evidence as files
from nest_ssl.recording.address import Address
from nest_ssl.recording.evidence import (
    Bound,
    Check,
    FloorEntry,
    Gathered,
    Gathering,
    Margin,
    NoiseFloor,
    Observer,
    Operators,
    Replay,
    Schedule,
    Unit,
    ValidationFloor,
    read_evidence,
    seal_of,
)
from nest_ssl.recording.layout import step_folder
from nest_ssl.recording.reader import Recording, open_recording

B = TypeVar("B", bound=Bound)
T = TypeVar("T")
SIDES = ("reference", "candidate")
_ASKED_AS = {"float64 replay": "float64", "noise floor": "floor"}  # by the words of `make explain EVIDENCE=`
OTHERS = "evidence of other recordings"
FIX = "Gather it again (make explain)."
UnitKey = tuple[int, int, str, str | None, int | None]  # step, rank, phase, module, call


@dataclass(frozen=True, slots=True)
class Had:
    """One kind of evidence: whether it was had, and what it cost.

    Args:
        why: it was not had.
        costs: what is less certain without it.
    """

    kind: str
    had: bool
    seconds: float = 0.0
    why: str = ""
    costs: str = ""


@dataclass(frozen=True, slots=True)
class Floors:
    """What rounding alone did to the tensors of one step of one rank."""

    entries: Mapping[Address, FloorEntry]
    margins: Mapping[tuple[Address, tuple[int, ...]], Margin]
    repeats: int = 0  # that made the floor: in none of them a discrete value became another one
    since: int | None = None  # the step in whose beginning each repeat began


@dataclass(slots=True)
class Evidence:
    """All evidence on one pair of recordings; None or empty where a kind was not gathered."""

    replay: Replay | None = None
    replay64: Replay | None = None
    float64: tuple[Recording, Recording] | None = None
    floors: dict[tuple[int, int], Floors] = field(default_factory=dict)  # by step and rank
    operators: tuple[Operators, Operators] | None = None
    schedules: tuple[Schedule, Schedule] | None = None
    checks: list[Check] = field(default_factory=list)  # what the runs certify about themselves
    gathered: list[Gathering] = field(default_factory=list)  # which kinds were asked for
    seconds: dict[str, float] = field(default_factory=dict)
    stale: str = ""  # what belongs to other recordings, and was left out with all the rest
    # By step and rank: by how much the weights of the two sides were apart already when the step began, in the floor's
    # own unit, where the floor's repeats began with that step.
    growths: dict[tuple[int, int], float] = field(default_factory=dict)
    unweighted: frozenset[str] = frozenset()  # what a validation calls before anything that has weights
    features: dict[Address, FloorEntry] = field(default_factory=dict)  # floors of those, as validations make them

    @property
    def had(self) -> list[Had]:
        kinds = {
            "replay": self.replay,
            "float64 replay": self.replay64,
            "float64": self.float64,
            "noise floor": self.floors,
            "operators": self.operators,
            "schedule": self.schedules,
            "observer": self.checks,
        }
        asked = {one.kind: one for one in self.gathered}
        had = []
        for kind, found in kinds.items():
            one = asked.get(_ASKED_AS.get(kind, kind))
            lacks = (one.why, one.costs) if one and not found else ("", "")
            had.append(Had(kind, bool(found), self.seconds.get(kind, 0.0), *lacks))
        return had

    def floor(self, step: int, address: Address) -> FloorEntry | None:
        floors = self.floors.get((step, address.rank))
        return floors.entries.get(address) if floors else None

    def widened(self, address: Address, step: int) -> float:
        """How many times further rounding takes the features of validations than those of a step; 1.0: not known."""
        made, of_step = self.features.get(address), self.floor(step, address)
        once = of_step.relative_largest if of_step else 0.0
        return made.relative_largest / once if made and once else 1.0

    def row(self, address: Address) -> float:
        """How far rounding takes most rows of the features of validations; infinite where it was not measured."""
        row = self.features[address].row if address in self.features else None
        return math.inf if row is None else row

    def growth(self, step: int, rank: int) -> float:
        """By how much the floor of a step is exceeded by what the sides were apart before it."""
        floors = self.floors.get((step, rank))
        within = floors is not None and floors.since is not None and floors.since < step  # the repeats began earlier
        return 1.0 if within else self.growths.get((step, rank), 1.0)

    def margin(self, step: int, address: Address, index: tuple[int, ...]) -> Margin | None:
        floors = self.floors.get((step, address.rank))
        return floors.margins.get((address, index)) if floors else None


def key_of(unit: Unit) -> UnitKey:
    return unit.step, unit.rank, unit.phase, unit.module, unit.call


def by_key(replay: Replay | None) -> dict[UnitKey, Unit]:
    return {key_of(unit): unit for unit in replay.units} if replay else {}


def evidence_on(reference: Recording, candidate: Recording, folder: Path | None = None) -> Evidence | None:
    """The evidence in `folder`, or what lies beside the reference; None where there is none.

    Args:
        folder: the one that the user names.

    Raises:
        UserError: the evidence in the folder that was named is damaged or belongs to other recordings; what lies beside
            the reference and belongs to others is left out, and `Evidence.stale` says so.
    """
    found = folder or files.folder_beside(reference.path)
    if not found.is_dir():
        return None
    try:
        return open_evidence(found, reference, candidate)
    except UserError as error:
        if folder is not None or error.what != OTHERS:
            raise
        return Evidence(stale=error.where)


def open_evidence(folder: Path, reference: Recording, candidate: Recording) -> Evidence:
    """Open the evidence in `folder`.

    Raises:
        UserError: a file is damaged, or belongs to other recordings.
    """
    seals = seal_of(reference.index), seal_of(candidate.index)
    found = Evidence(seconds={})

    def read(kind: str, name: str, shape: type[B], of: tuple[set[str], set[str]]) -> B | None:
        path = folder / name
        if not path.exists():
            return None
        evidence = read_evidence(path, shape)
        if evidence.reference not in of[0] or (evidence.candidate is not None and evidence.candidate not in of[1]):
            raise UserError(OTHERS, str(path), FIX)
        found.seconds[kind] = found.seconds.get(kind, 0.0) + evidence.seconds
        return evidence

    own = {seals[0]}, {seals[1]}
    found.replay = read("replay", files.REPLAY, Replay, own)
    found.float64 = _open_float64(folder / files.FLOAT64, reference, candidate)
    if found.float64 and isinstance(candidate, Renamed):
        found.float64 = found.float64[0], Renamed(found.float64[1], candidate.names.map.in_float64())
    in_float64 = own
    if found.float64:
        in_float64 = own[0] | {seal_of(found.float64[0].index)}, own[1] | {seal_of(found.float64[1].index)}
        found.seconds["float64"] = sum(side.index.duration_s for side in found.float64)
    found.replay64 = read("float64 replay", f"{files.FLOAT64}/{files.REPLAY}", Replay, in_float64)
    for step in reference.steps:
        for rank in range(reference.world_size):
            name = f"{files.FLOOR}/{step_folder(step, rank, reference.world_size)}/{files.NOISE_FLOOR}"
            floor = read("noise floor", name, NoiseFloor, own)
            if floor:
                found.floors[step, rank] = Floors(
                    {entry.place.address: entry for entry in floor.entries},
                    {(margin.place.address, tuple(margin.index)): margin for margin in floor.margins},
                    floor.repeats if floor.making is None else floor.making,
                    floor.since,
                )
    features = read("noise floor", f"{files.FLOOR}/{files.VALIDATION_FLOOR}", ValidationFloor, own)
    found.features = {entry.place.address: entry for entry in features.entries} if features else {}
    found.operators = _pair(lambda side: read("operators", f"{files.OPERATORS}/{side}.json", Operators, own))
    if found.operators and isinstance(candidate, Renamed):
        found.operators = found.operators[0], candidate.operators(found.operators[1])
    found.schedules = _pair(lambda side: read("schedule", f"{files.SCHEDULE}/{side}.json", Schedule, own))
    observer = read("observer", files.OBSERVER, Observer, own)
    gathered = read("gathered", files.GATHERED, Gathered, own)
    found.checks = observer.checks if observer else []
    found.gathered = gathered.kinds if gathered else []
    return found


def _pair(read: Callable[[str], T | None]) -> tuple[T, T] | None:
    one, other = (read(side) for side in SIDES)
    return (one, other) if one is not None and other is not None else None


# What an evidence run sets otherwise than the run that it repeats, none of which makes it another experiment.
_FREE = ("output_dir", "overwrite", "save_steps", "stop_when_recorded", "exp_manager", "noise_floor", "operators",
         "learning_rates", "nemo")  # fmt: skip


def _open_float64(folder: Path, reference: Recording, candidate: Recording) -> tuple[Recording, Recording] | None:
    """Both trainers in float64, if both are there: of the same settings but the precision, made by the same code."""
    paths = [folder / name for name in files.float64_names(reference.path, candidate.path)]
    if not all(path.is_dir() for path in paths):
        return None
    opened = [open_recording(path, verify=False) for path in paths]  # what is compared is checked when it is read
    for original, found in zip((reference, candidate), opened, strict=True):
        settings = [dict(leaves(side.config)) for side in (original, found)]
        other = [
            path
            for path, one, two in pairs(*settings)
            if path.split(".")[0] not in _FREE
            and path not in ("trainer.precision", "trainer.logger")
            and repr(one) != repr(two)
            and {one, two} != {ABSENT, None}
        ]
        other += ["seed"] if original.index.seed != found.index.seed else []
        sources = original.index.sources
        other += [name for name, source in found.index.sources.items() if sources.get(name) != source]
        if other:
            raise UserError(OTHERS, f"{found.path}: {other[0]} is not {original.path.name}'s", FIX)
    return opened[0], opened[1]
