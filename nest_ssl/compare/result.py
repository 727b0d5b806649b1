"""What a comparison finds: plain data, no tensors, so that a report can be written from it alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nest_ssl.compare.metrics import Metrics

RUNGS = (
    "contract", "structure", "initial_weights", "batch", "draws", "forward", "loss", "gradients", "weights", "steps",
)  # fmt: skip

# Statuses of a rung, from good to bad.
IDENTICAL = "identical"  # same bits
EQUIVALENT = "equivalent"  # every differing tensor is floating point and within the tolerance
NOT_COMPARED = "not compared"  # nothing there to compare where something should be
MISSING = "missing"  # what both have is the same, but one side lacks something
DIVERGED = "diverged"
SEVERITY = (IDENTICAL, EQUIVALENT, NOT_COMPARED, MISSING, DIVERGED)

INCONCLUSIVE = "inconclusive"  # a verdict only

# Kinds of difference.
VALUES, SHAPE, DTYPE, TYPE, NONE, SETTING = "values", "shape", "dtype", "type", "none", "setting"
DRAWS, STATE = "draws", "state"  # how many random numbers were drawn, and from or to which state of a generator
MISSING_REFERENCE, MISSING_CANDIDATE = "missing_reference", "missing_candidate"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is: as much of it as applies."""

    rung: str
    step: int | None = None
    module: str | None = None
    call: int | None = None
    tensor: str | None = None  # a tensor, a field or a setting: "output", "inputs.x", "weight", "config.seed"
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """Two values at one place that are not the same.

    `within` says that the tolerance covers it, which it can only where floating-point values differ.
    `reference` and `candidate` are the values at `index`, or, for other kinds, what either side is.
    """

    place: Place
    kind: str
    reference: Any = None
    candidate: Any = None
    within: bool = False
    index: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    metrics: Metrics | None = None

    @property
    def missing(self) -> bool:
        return self.kind in (MISSING_REFERENCE, MISSING_CANDIDATE)


@dataclass(slots=True)
class Tally:
    """Counts and differences of one rung at one step (or of the whole run), differences in causal order.

    `compared` counts by unit, e.g. ``{"calls": 1004, "outputs": 4}``.
    """

    rung: str
    step: int | None = None
    rank: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    differing: int = 0
    missing_reference: int = 0
    missing_candidate: int = 0
    differences: list[Difference] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # why there is nothing where something should be
    notes: list[str] = field(default_factory=list)

    def item(self, unit: str, differences: list[Difference]) -> None:
        """One thing compared, with the differences found in it."""
        self.compared[unit] += 1
        self.differing += bool(differences)
        self.differences += differences

    def missing(self, place: Place, kind: str, what: Any = "present") -> None:
        """One thing that a side lacks; `what` is what the other side has."""
        if kind == MISSING_REFERENCE:
            self.missing_reference += 1
            self.differences.append(Difference(place, kind, "absent", what))
        else:
            self.missing_candidate += 1
            self.differences.append(Difference(place, kind, what, "absent"))

    def lacking(self, kind: str, count: int, why: str) -> None:
        """A whole part that a side did not record: nothing can be said about it, good or bad."""
        self.missing_reference += count if kind == MISSING_REFERENCE else 0
        self.missing_candidate += count if kind == MISSING_CANDIDATE else 0
        self.absent.append(why)

    @property
    def status(self) -> str:
        if any(not d.within and not d.missing for d in self.differences):
            return DIVERGED
        if any(d.missing for d in self.differences):
            return MISSING
        if self.absent or not self.compared:
            return NOT_COMPARED
        return EQUIVALENT if self.differences else IDENTICAL


@dataclass(slots=True)
class Rung:
    """One rung of the ladder over all steps."""

    name: str
    tallies: list[Tally] = field(default_factory=list)

    @property
    def status(self) -> str:
        return max((tally.status for tally in self.tallies), key=SEVERITY.index, default=NOT_COMPARED)

    @property
    def compared(self) -> int:
        return sum(tally.compared.total() for tally in self.tallies)

    @property
    def differing(self) -> int:
        return sum(tally.differing for tally in self.tallies)

    @property
    def missing_reference(self) -> int:
        return sum(tally.missing_reference for tally in self.tallies)

    @property
    def missing_candidate(self) -> int:
        return sum(tally.missing_candidate for tally in self.tallies)

    @property
    def differences(self) -> list[Difference]:
        return [difference for tally in self.tallies for difference in tally.differences]


# --- forward, module by module ----------------------------------------------------------------------------------------

BORN = "born here"  # same inputs, other output, and nothing inside explains it
NUMBERS = "other random numbers"  # same inputs, other output, and its random draws differ
WEIGHTS = "other weights"  # same inputs, other output, and the module's own weights differed before the step
UNKNOWN = "here or earlier"  # same inputs, other output, and the steps before were not recorded
INSIDE = "born inside"  # a container: one of its children is to blame
CAME_IN = "came in"  # other inputs, other output
STOPPED = "stopped here"  # other inputs, same output


@dataclass(slots=True)
class CallJudgement:
    """One call of one module that is not the same on both sides."""

    step: int
    module: str
    call: int
    relation: str
    order: int  # execution order in the reference, by start
    worst: Difference
    rank: int = 0


# --- random draws -----------------------------------------------------------------------------------------------------

DRAWN_SAME = "same"
DRAWN_ELSEWHERE = "drawn elsewhere"  # the same numbers of the same stream, in another call; no difference
OTHER_COUNT = "other count"
ONE_SIDED = "on one side"
LEFT_OTHERWISE = "left otherwise"  # same start, same count, other state after it; and CAME_IN: other start, same count


@dataclass(frozen=True, slots=True)
class Draw:
    """What one generator gave to one stage, on both sides; to several stages where the sides divide it otherwise.

    `draws` counts 32-bit words: 0 where a side draws nothing there, None where they could not be counted.
    """

    step: int | None
    rank: int
    generator: str
    reference: tuple[str, ...]  # stages, ``name#call`` for a module's call
    candidate: tuple[str, ...]
    draws: tuple[int | None, int | None]
    relation: str
    event: int  # how many of the reference's calls had started and ended before
    came_in: bool  # another state to start from
    difference: Difference | None

    @property
    def stage(self) -> str:
        return (self.reference or self.candidate)[0]


@dataclass(slots=True)
class LossAccount:
    """How the loss came about at one step, on both sides."""

    step: int
    reference: float | None
    candidate: float | None
    masked_frames: tuple[int, int] | None = None  # reference, candidate
    counted_tokens: tuple[int, int] | None = None
    tokens: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Declared:
    """A declared structural difference, and the modules that it excuses in this pair."""

    pattern: str
    side: str
    reason: str
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KnownDifference:
    """A named difference between the generations of NeMo that the two sides follow, and its value in each."""

    name: str  # e.g. "stft_padding"
    where: str  # the module that it concerns, or "batch"
    what: str
    reference: Any
    candidate: Any


@dataclass(slots=True)
class Side:
    """One recording, as the report names it."""

    label: str
    path: str
    index: dict[str, Any]
    config: dict[str, Any]


@dataclass(slots=True)
class Facts:
    """What was compared, for the report's first screen."""

    parameters: int | None = None
    batch: str = ""  # "2 x 3.0 s"
    tensors: int = 0
    tensors_same: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Comparison:
    """Everything that a report says."""

    reference: Side
    candidate: Side
    steps: list[int]
    rungs: list[Rung]
    verdict: str
    exit_code: int
    first: Difference | None  # the headline; see `ladder.headline`
    first_bits: Difference | None  # the first difference of any size
    first_beyond: Difference | None  # the first difference that the tolerance does not cover
    born_in: str | None  # the module in whose own code the headline arose, as far as the order of events tells
    origin: str  # one sentence: what is known of how the headline arose
    follows: list[str]
    unexplained: list[str]
    judgements: list[CallJudgement]
    draws: list[Draw]
    losses: list[LossAccount]
    declared: list[Declared]
    known: list[KnownDifference]  # between the generations of NeMo, in the order in which they take effect
    tolerance: dict[str, Any]
    facts: Facts
    notes: list[str]

    def rung(self, name: str) -> Rung:
        return next(rung for rung in self.rungs if rung.name == name)
