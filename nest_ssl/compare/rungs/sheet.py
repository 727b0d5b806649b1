"""One tally in the making: what is compared goes in, counts and findings come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.findings import Difference, Finding, Note, RungName, Spot, Tally
from nest_ssl.compare.values import Comparer, absent
from nest_ssl.recording.address import Address
from nest_ssl.recording.clock import BEFORE_STEPS, Moment, Part, Phase
from nest_ssl.recording.step_files import StepFiles

Named = Mapping[str, Any]


class Sheet:
    """Fills the `tally` of one rung, at one step of one rank or of the whole run."""

    def __init__(self, rung: RungName, comparer: Comparer, step: int | None = None, rank: int = 0) -> None:
        self.tally = Tally(rung, step, rank)
        self.comparer = comparer
        self.step = BEFORE_STEPS if step is None else step

    def spot(self, address: Address, phase: Phase, event: float = 0, part: Part = Part.VALUE) -> Spot:
        address = replace(address, rank=self.tally.rank) if self.tally.rank else address
        return Spot(self.tally.rung, Moment(self.step, phase, event, part), address)

    def item(self, unit: str, findings: list[Finding]) -> None:
        """One thing compared, with the differences found in it."""
        self.tally.compared[unit] += 1
        self.tally.differing += bool(findings)
        self.tally.findings += findings

    def missing(self, finding: Finding) -> None:
        """One thing that a side lacks."""
        self.tally.missing_reference += finding.difference == Difference.MISSING_REFERENCE
        self.tally.missing_candidate += finding.difference == Difference.MISSING_CANDIDATE
        self.tally.findings.append(finding)

    def pair(self, unit: str, spot: Spot, reference: Any, candidate: Any) -> None:
        """Two nested values, either of which may be `ABSENT`."""
        if reference is ABSENT or candidate is ABSENT:
            self.missing(absent(spot, reference, candidate))
        else:
            self.item(unit, self.comparer.nested(spot, reference, candidate))

    def table(
        self, unit: str, reference: Named, candidate: Named, phase: Phase, address: Callable[[str], Address]
    ) -> None:
        """Two tables of named values, in the reference's order."""
        for name, one, other in pairs(reference, candidate):
            self.pair(unit, self.spot(address(name), phase), one, other)

    def note(self, kind: str, **values: Any) -> None:
        self.tally.notes.append(Note(kind, values))

    def nothing(self, kind: str, **values: Any) -> None:
        """There is nothing where something should be: neither good nor bad can be said about it."""
        self.tally.absent.append(Note(kind, values))

    def both_have(self, name: str, reference: StepFiles, candidate: StepFiles) -> bool:
        """Whether both recorded this file of the step; what is lacking counts as missing."""
        have = reference.has(name), candidate.has(name)
        self.tally.missing_reference += not have[0]
        self.tally.missing_candidate += not have[1]
        for side in [side for side, has in zip(("reference", "candidate"), have, strict=True) if not has]:
            self.nothing("file_missing", step=self.step, side=side, file=name)
        return all(have)

    def need_tensor(self, reference: Named, candidate: Named) -> None:
        shared = [side[name] for name in reference if name in candidate for side in (reference, candidate)]
        if not any(isinstance(value, Tensor) for value in shared):
            self.nothing("no_tensor", step=self.step, rung=self.tally.rung)


def whole_numbers_first(table: Named) -> Named:
    """Lengths and tokens before sounds and probabilities: where both differ, the former say more."""
    return dict(sorted(table.items(), key=lambda item: isinstance(item[1], Tensor) and item[1].is_floating_point()))
