"""Was a case caught, placed and spared? What was found against what had to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nest_ssl.selftest.cases import Case, Places, places
from nest_ssl.selftest.trial import Outcome

DIFFERENT_EXPERIMENT = 4  # exit code
UNKNOWN = "unknown"  # kind of fault


def verdict_of(outcome: Outcome) -> str:
    """Of a case that did not train: that it raised."""
    if outcome.error:
        return "raised"
    return "another experiment" if outcome.exit_code == DIFFERENT_EXPERIMENT else outcome.verdict


def is_caught(case: Case, outcome: Outcome) -> bool:
    """Whether the verdict is the one that had to be given."""
    found = verdict_of(outcome)
    return found == case.verdict or (case.verdict == "equivalent" and found == "identical")


def found_places(outcome: Outcome) -> Places:
    return frozenset((place.phase, place.module) for place in outcome.born)


def is_placed(case: Case, outcome: Outcome) -> bool:
    """Whether all the places where it was born were named, and no other one."""
    found, expected, also = found_places(outcome), places(case.born), places(case.also)
    anywhere = {phase for phase, module in also if module == "*"}
    others = {(phase, module) for phase, module in found - expected - also if phase not in anywhere}
    return is_caught(case, outcome) and expected <= found and not others


@dataclass(frozen=True)
class Score:
    """How a case went.

    Args:
        limit: the smallest size at which it is caught; None where it has none, was not caught, or none was sought.
    """

    case: Case
    outcome: Outcome
    limit: float | None = None

    @property
    def caught(self) -> bool:
        return is_caught(self.case, self.outcome)

    @property
    def placed(self) -> bool:
        return is_placed(self.case, self.outcome)

    @property
    def kind(self) -> str:
        """Whether the kinds of fault named are ``right``, one is ``wrong``, or one ``unknown``; "" where none is."""
        named, expected = set(self.outcome.kinds), set(self.case.expected_kinds)
        if not self.case.is_fault or not self.caught or not named:
            return ""
        if named - expected - {UNKNOWN}:
            return "wrong"
        return "right" if expected <= named else UNKNOWN


def smallest(scores: Sequence[Score], in_float64: bool = False) -> float | None:
    """The smallest relative error by which a fault was known."""
    sizes = [
        size
        for score in scores
        if score.case.is_fault and score.placed
        for place in score.outcome.born
        if (size := place.in_float64 if in_float64 else place.size) is not None and size > 0
    ]
    return min(sizes, default=None)
