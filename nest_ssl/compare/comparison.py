"""The whole of a comparison: everything that a report says, as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nest_ssl.compare.findings import (
    CallJudgement,
    Cause,
    Consequence,
    Draw,
    Finding,
    Losses,
    Note,
    Remainder,
    Rung,
    RungName,
    Status,
)
from nest_ssl.compare.kinds import Likely
from nest_ssl.compare.proof import Proof
from nest_ssl.compare.rules.known import Used
from nest_ssl.recording.index import Index
from nest_ssl.recording.reader import Recording


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an explainer registered from outside has to say about a step: its own facts, and its own sentence."""

    name: str
    step: int | None
    sentence: str
    values: dict[str, Any] = field(default_factory=dict)
    weakens: str = ""  # why little is proved by this step (say, no token counts and every gradient is zero)


# Called for each step that both sides recorded: the reference, the candidate, the step.
Explainer = Callable[[Recording, Recording, int], Explanation | None]


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

    name: str
    where: str
    what: str
    reference: Any
    candidate: Any


@dataclass(slots=True)
class Side:
    """One recording, as the report names it."""

    label: str
    path: str
    index: Index
    config: dict[str, Any]
    buffers: frozenset[str] = frozenset()  # of the model


@dataclass(slots=True)
class Facts:
    """What was compared, for the report's first screen."""

    parameters: int | None = None
    batch: str = ""  # "2 x 3.0 s", from an explainer
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
    verdict: Status
    exit_code: int
    first: Finding | None  # the headline; see `causes.headline`
    first_bits: Finding | None  # the first difference of any size
    first_beyond: Finding | None  # the first one that the rules do not allow
    cause: Cause | None
    follows: list[Consequence]
    unexplained: list[Remainder]
    calls: list[CallJudgement]
    draws: list[Draw]
    losses: list[Losses]
    explanations: list[Explanation]
    declared: list[Declared]
    known: list[KnownDifference]  # between the generations of NeMo, in the order in which they take effect
    rule: dict[str, Any]  # the rule that judged, and its settings
    facts: Facts
    notes: list[Note]
    proof: Proof = field(default_factory=Proof)  # what the evidence shows
    kinds: list[Likely] = field(default_factory=list)  # the likely kind of each fault, in causal order
    unseen: list[Note] = field(default_factory=list)  # what this run could not see
    ledger: list[Used] = field(default_factory=list)  # differences that the user knows

    @property
    def contract_differs(self) -> bool:
        """Then nothing else means anything, whatever it shows."""
        return self.first is not None and self.first.rung == "contract"

    def rung(self, name: RungName) -> Rung:
        return next(rung for rung in self.rungs if rung.name == name)
