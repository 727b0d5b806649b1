"""Rung 10: where the trajectories part. A step counts as differing by the first finding in it."""

from __future__ import annotations

from collections.abc import Sequence

from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.findings import SEVERITY, Status, Tally
from nest_ssl.compare.rungs.sheet import Sheet


def compare_steps(sheet: Sheet, results: Sequence[StepFindings], steps: Sequence[int]) -> Tally:
    for step in steps:
        tallies = [tally for result in results if result.step == step for tally in result.tallies.values()]
        found = sorted((f for tally in tallies for f in tally.findings), key=lambda finding: finding.moment)
        worst = next((finding for finding in found if not finding.within), found[0] if found else None)
        sheet.item("steps", [worst] if worst else [])
        if max((tally.status for tally in tallies if not tally.unrecorded), key=SEVERITY.index) == Status.NOT_COMPARED:
            sheet.nothing("step_not_compared", step=step)
    parted = [result.step for result in results if result.tallies["weights"].findings]
    if parted:
        sheet.note("weights_part", step=min(parted))
    return sheet.tally
