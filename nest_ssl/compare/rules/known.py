"""Differences that are known and meant, each with its reason: a ledger that the user gives.

    - address: encoder.pos_enc.output.1      # module and name as the report shows them; * matches anything
      within: 2.0e-5                         # how far apart, relative to the reference (Frobenius)
      follows: 1.0e-3                        # optional: how far apart what comes after it may be
      cause: the table of positions is computed in float64
      evidence: https://example.org/issues/12
      expires: 2027-06-30

An entry that matches nothing any more, or whose day is over, fails: a ledger only ever shrinks by itself.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.safe_load import load_yaml
from nest_ssl.compare.findings import Difference, Finding, Judgement, Note, Spot, Tally
from nest_ssl.compare.metrics import Metrics
from nest_ssl.compare.rules import Rule
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import BEFORE_STEPS, Moment, Phase

_TEXTS = ("address", "cause", "evidence")
_KEYS = {*_TEXTS, "within", "expires"}
UNUSED = "no longer a difference"


@dataclass(frozen=True, slots=True)
class Known:
    """One entry of the ledger; see the module."""

    address: str
    within: float
    cause: str
    evidence: str
    expires: datetime.date
    follows: float | None = None

    def matches(self, address: Address) -> bool:
        return fnmatchcase(".".join(part for part in (address.module, address.own_name) if part), self.address)


@dataclass(slots=True)
class Used:
    """An entry, what it let pass, and why it no longer applies if it does not."""

    entry: Known
    count: int = 0
    followed: int = 0
    fault: str = ""


def load_known(path: Path) -> list[Known]:
    """The entries of a ledger.

    Raises:
        UserError: the file cannot be read or has entries of another shape.
    """
    try:
        entries = load_yaml(path.read_bytes(), str(path)) or []
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        try:
            if set(entry) - {"follows"} != _KEYS or not all(
                isinstance(entry[key], str) and entry[key] for key in _TEXTS
            ):
                raise ValueError("its keys")
            numbers = {key: float(entry[key]) for key in ("within", "follows") if key in entry}
            if not all(0 <= number < math.inf for number in numbers.values()):
                raise ValueError("its numbers")
            expires = datetime.date.fromisoformat(str(entry["expires"]))
            found.append(Known(**{**entry, **numbers, "expires": expires}))
        except (TypeError, ValueError, AttributeError) as error:
            fix = "Give each entry the texts address, cause and evidence, the number within, and the day expires."
            raise UserError("a known difference of another shape", f"{path}: {entry!r}", fix) from error
    return found


@dataclass(slots=True)
class KnownRule:
    """What `inner` does not let pass and an entry does.

    Args:
        inner: the rule that judges everything else.
        entries: of the ledger.
        whole: whether all is compared here that they may apply to; of one rank of several it is not, see `used_by_any`.
    """

    inner: Rule
    entries: Sequence[Known]
    whole: bool = True
    counts: Counter[Known] = field(default_factory=Counter)
    followed: Counter[Known] = field(default_factory=Counter)
    since: dict[Known, Moment] = field(default_factory=dict)  # where an entry that things follow from was first used

    def bound(self, spot: Spot) -> tuple[float, float]:
        return self.inner.bound(spot)

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        found = self.inner.judge(spot, metrics, source)
        size = metrics.relative
        if found.within or size is None or metrics.nonfinite_disagree:
            return found
        for entry in self.entries:
            if entry.matches(spot.address) and size <= entry.within:
                self.counts[entry] += 1
                self.since[entry] = min(spot.moment, self.since.get(entry, spot.moment))
                return Judgement(True, "known", {"relative": entry.within}, size / (entry.within or 1.0))
        return found

    def follow(self, tallies: Sequence[Tally]) -> None:
        """Let pass what comes after a known difference, as far as its entry says; call it when all is compared."""
        for tally in tallies:
            for place, one in enumerate(tally.findings):
                size = one.metrics.relative if one.metrics and not one.metrics.nonfinite_disagree else None
                for entry, since in self.since.items():
                    bound = entry.follows
                    if size is not None and bound and not one.within and since <= one.moment and size <= bound:
                        self.followed[entry] += 1
                        judgement = Judgement(True, "known", {"relative": bound}, size / bound)
                        one = tally.findings[place] = replace(one, judgement=judgement)

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        return self.inner.judge_whole(spot, metrics)

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()

    def out_of_date(self) -> list[Finding]:
        """The entries that no longer apply, as differences of their own."""
        moment, address = Moment(BEFORE_STEPS, Phase.STRUCTURE), Address(Kind.SETTING, slot="known")
        faults = [(used.fault, used.entry.address) for used in self.used() if used.fault]
        return [Finding("structure", moment, address, Difference.SETTING, *fault) for fault in faults]

    def undecided(self) -> list[Note]:
        """The entries that this one rank does not show to apply, and of which others may."""
        unused = [used.entry for used in self.used() if not (used.count or used.fault)]
        return [Note("unseen_known", {"address": entry.address}) for entry in unused]

    def used(self, today: datetime.date | None = None) -> list[Used]:
        """All entries with what they let pass; call it when all is compared."""
        day = today or datetime.date.today()
        return [
            Used(
                entry,
                self.counts[entry],
                self.followed[entry],
                "expired" if entry.expires < day else "" if self.counts[entry] or not self.whole else UNUSED,
            )
            for entry in self.entries
        ]


def used_by_any(ledgers: Sequence[Sequence[Used]]) -> list[Used]:
    """What each entry let pass on all ranks together; one that none of them uses no longer applies."""
    found = []
    for used in zip(*ledgers, strict=True):
        counts = sum(one.count for one in used), sum(one.followed for one in used)
        found.append(Used(used[0].entry, *counts, used[0].fault or ("" if counts[0] else UNUSED)))
    return found
