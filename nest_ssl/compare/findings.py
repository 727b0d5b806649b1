"""What a comparison finds: plain data, no tensors and no sentences, so that any renderer can be made of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple, get_args

from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.address import Address
from nest_ssl.recording.clock import Moment

RungName = Literal[
    "contract",
    "structure",
    "initial_weights",
    "validation",
    "start",
    "batch",
    "draws",
    "forward",
    "loss",
    "gradients",
    "optimizer_input",
    "weights",
    "steps",
]
RUNGS: tuple[RungName, ...] = get_args(RungName)
STEP_RUNGS = RUNGS[RUNGS.index("start") : RUNGS.index("steps")]  # of each step, from its start to what it leaves
OPTIONAL_RUNGS: tuple[RungName, ...] = ("validation", "start", "optimizer_input")  # older recordings do not have them


class Status(str, Enum):
    """Of a rung, from good to bad; the verdict of a whole comparison is one of the first two or the last two."""

    IDENTICAL = "identical"  # same bits
    EQUIVALENT = "equivalent"  # every differing tensor is within what the rules allow
    NOT_COMPARED = "not compared"  # nothing there to compare where something should be
    MISSING = "missing"  # what both have is the same, but one side lacks something
    DIVERGED = "diverged"
    INCONCLUSIVE = "inconclusive"  # a verdict only


SEVERITY = (Status.IDENTICAL, Status.EQUIVALENT, Status.NOT_COMPARED, Status.MISSING, Status.DIVERGED)


class Difference(str, Enum):
    """In what way two things are not the same."""

    VALUES = "values"
    SHAPE = "shape"
    DTYPE = "dtype"
    TYPE = "type"
    NONE = "none"  # None on one side
    SETTING = "setting"
    DRAWS = "draws"  # how many random numbers were drawn
    STATE = "state"  # from which, or to which, state of a generator
    MISSING_REFERENCE = "missing_reference"
    MISSING_CANDIDATE = "missing_candidate"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A rule's answer about one difference of floating-point values.

    Args:
        within: whether the rule allows it.
        rule: the rule's name.
        bound: what the rule allowed here, in the rule's own terms, e.g. ``{"atol": 1e-5, "rtol": 1e-5}``.
        ratio: how far the difference is from the bound; at most 1 within it; None where that has no meaning.
    """

    within: bool
    rule: str
    bound: dict[str, float]
    ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Two things at one address that are not the same.

    `reference` and `candidate` are the values at `index`, or, for other kinds, what either side is.
    """

    rung: RungName
    moment: Moment
    address: Address
    difference: Difference
    reference: Any = None
    candidate: Any = None
    judgement: Judgement | None = None
    index: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    metrics: Metrics | None = None

    @property
    def within(self) -> bool:
        return self.judgement is not None and self.judgement.within

    @property
    def size(self) -> tuple[bool, float]:
        """For the worst of several: what is no distance between numbers first, then by the largest distance."""
        unlike = self.metrics is None or bool(self.metrics.nonfinite_disagree)
        return unlike, float(self.metrics.max_abs or 0.0) if self.metrics and not unlike else 0.0

    @property
    def missing(self) -> bool:
        return self.difference in (Difference.MISSING_REFERENCE, Difference.MISSING_CANDIDATE)


class Spot(NamedTuple):
    """Where on the ladder, when and at what address two things are compared."""

    rung: RungName
    moment: Moment
    address: Address

    def inside(self, path: str) -> Spot:
        return self._replace(address=self.address.at(path)) if path else self

    def finding(self, difference: Difference, reference: Any, candidate: Any, **rest: Any) -> Finding:
        return Finding(*self, difference, reference, candidate, **rest)


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a line that is no difference of numbers: a kind, and the values that its sentence needs."""

    kind: str  # a key of the report's words
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    """Counts and findings of one rung at one step of one rank (or of the whole run), findings in causal order.

    `compared` counts by unit, e.g. ``{"calls": 1004, "outputs": 4}``.
    """

    rung: RungName
    step: int | None = None
    rank: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    differing: int = 0
    missing_reference: int = 0
    missing_candidate: int = 0
    findings: list[Finding] = field(default_factory=list)
    absent: list[Note] = field(default_factory=list)  # why there is nothing where something should be
    notes: list[Note] = field(default_factory=list)

    @property
    def unrecorded(self) -> bool:
        """Whether a side is of before this was recorded, which is neither good nor bad."""
        optional = self.rung in OPTIONAL_RUNGS or (self.rung == "draws" and self.step is None)
        return optional and not self.compared and not self.findings

    @property
    def status(self) -> Status:
        if any(not finding.within and not finding.missing for finding in self.findings):
            return Status.DIVERGED
        if any(finding.missing for finding in self.findings):
            return Status.MISSING
        if self.absent or not self.compared:
            return Status.NOT_COMPARED
        return Status.EQUIVALENT if self.findings else Status.IDENTICAL


@dataclass(slots=True)
class Rung:
    """One rung of the ladder over all steps."""

    name: RungName
    tallies: list[Tally] = field(default_factory=list)

    @property
    def status(self) -> Status:
        return max((tally.status for tally in self.tallies), key=SEVERITY.index, default=Status.NOT_COMPARED)

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
    def findings(self) -> list[Finding]:
        return [finding for tally in self.tallies for finding in tally.findings]


# --- how differences came about ---------------------------------------------------------------------------------------


class Relation(str, Enum):
    """How one call that is not the same on both sides came to differ."""

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
    relation: Relation
    order: int  # execution order in the reference, by start
    worst: Finding
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss of one step on both sides."""

    step: int
    reference: float | None
    candidate: float | None


class Fate(str, Enum):
    """What became of a draw on both sides."""

    SAME = "same"
    ELSEWHERE = "drawn elsewhere"  # the same numbers of the same stream, in another call; no difference
    OTHER_COUNT = "other count"
    ONE_SIDED = "on one side"
    LEFT_OTHERWISE = "left otherwise"  # same start, same count, other state after it
    CAME_IN = "came in"  # other start, same count


@dataclass(frozen=True, slots=True)
class Stage:
    """Who draws: a call of a module, or a part of training outside of all calls."""

    phase: str  # name of a `Phase` in lower case, or "training_step" before and "loss" after the model's forward
    module: str | None = None
    call: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """What one generator gave to one stage, on both sides; to several stages where the sides divide it otherwise.

    `draws` counts 32-bit words: 0 where a side draws nothing there, None where they could not be counted.
    """

    moment: Moment
    rank: int
    generator: str
    reference: tuple[Stage, ...]
    candidate: tuple[Stage, ...]
    draws: tuple[int | None, int | None]
    fate: Fate
    came_in: bool  # another state to start from
    finding: Finding | None

    @property
    def step(self) -> int | None:
        return None if self.moment.step < 0 else self.moment.step

    @property
    def stage(self) -> Stage:
        return (self.reference or self.candidate)[0]


class Birth(str, Enum):
    """How the headline arose, as far as clock and producers show."""

    BUILT_OTHERWISE = "built otherwise"  # structure
    FILLED_OTHERWISE = "filled otherwise"  # initial weights
    VALIDATION = "validation"
    BETWEEN_STEPS = "between steps"  # weights that something else than a step has changed
    UNRECORDED = "unrecorded"  # it differs when the step begins, behind steps that were not recorded
    MODE = "mode"  # of a module, switched between steps
    BATCH = "batch"  # before the model has seen it
    MEMORY = "memory"  # fields of the batch are one memory, and the forward edits it
    DRAW = "draw"  # a random draw; `draw` says which
    STATE = "state"  # a generator's state at a boundary, and no ledger says more
    NEVER_CALLED = "never called"  # by the candidate
    BEFORE_CALL = "before call"  # the inputs of `at` differ, all before it is the same: own code of `module`
    OWN_CODE = "own code"  # inputs and all calls inside are the same, the output is not
    OUTPUT = "output"  # the same for a module without calls inside
    MODEL_OUTPUT = "model output"  # no call that was compared differs before it
    LOSS = "loss"
    OWN_BACKWARD = "own backward"  # the gradient that arrives is the same
    FIRST_GRADIENT = "first gradient"  # the backward of the loss
    BETWEEN_BACKWARDS = "between backwards"  # of `after` and this
    GRADIENT = "gradient"  # nothing that backward reached before it differs
    NOT_CLEARED = "not cleared"  # gradients of earlier batches, in the candidate alone
    CLEARED = "cleared"  # in the candidate alone
    CLIPPING = "clipping"  # gradients differ between backward and the optimizer
    NO_UPDATE = "no update"  # only one side makes a step with this batch
    OPTIMIZER_SETTING = "optimizer setting"
    OPTIMIZER_STATE = "optimizer state"  # that the update goes on from, changed by something else than a step
    SCHEDULE = "schedule"
    UPDATE = "update"  # loss and gradients are the same
    GROWN = "not grown"  # bits part earlier, within the rule, but this cannot have grown from that


@dataclass(frozen=True, slots=True)
class Cause:
    """Where and how the headline was born.

    Args:
        birth: how.
        module: the module in whose own code it was born, None where no module's.
        after: for `BETWEEN_BACKWARDS` the last call whose gradient was the same; for `BEFORE_CALL` the one whose output
            the reference hands on unedited, if there is one.
        order, calls: place in execution order and number of calls, for a call.
        draw: the random draw that is to blame, or that shows first behind the headline.
        states: generators that this forward left in other states, where no ledger says more.
        batch_differs: of a draw while fetching: the batch differs as well.
        unrecorded: first and last step just before it that were not recorded: it may have been born there.
    """

    birth: Birth
    module: str | None = None
    after: str | None = None
    order: int | None = None
    calls: int | None = None
    draw: Draw | None = None
    states: tuple[str, ...] = ()
    batch_differs: bool = False
    unrecorded: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Consequence:
    """How much of one rung, at one step, differs after the headline."""

    rung: RungName
    step: int | None
    count: int
    largest: float | None = None  # of a loss


class Unexplained(str, Enum):
    """What differs although nothing recorded that it depends on does."""

    CLASSES = "classes"
    INITIAL_WEIGHTS = "initial weights"
    OTHER_FIELDS = "other fields"  # of the same batch as the headline
    FIELDS = "fields"  # of a batch, which the model has no part in
    DRAWS = "draws"
    CALLS = "calls"
    LOSS = "loss"
    GRADIENTS = "gradients"
    VALIDATION = "validation"
    START = "start"  # weights or modes that were changed between steps
    GRADIENTS_BEFORE = "gradients before"  # backward
    OPTIMIZER_INPUT = "optimizer input"
    OPTIMIZER = "optimizer"
    UPDATES = "updates"


@dataclass(frozen=True, slots=True)
class Remainder:
    """Findings of one kind that the headline cannot explain."""

    why: Unexplained
    findings: tuple[Finding, ...]
