"""The parts of a report, each a function from a comparison to blocks of the document."""

from __future__ import annotations

from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.document import Block
from nest_ssl.report.sections.background import declared, known, ledger, notes, overview, provenance, reproduce, rule
from nest_ssl.report.sections.calls import calls
from nest_ssl.report.sections.draws import draws
from nest_ssl.report.sections.headline import consequences, first_difference, headline, next_step
from nest_ssl.report.sections.kinds import likely_kinds
from nest_ssl.report.sections.measured import detection
from nest_ssl.report.sections.proof import born_list, evidence, modules, other_births
from nest_ssl.report.sections.rungs import differences, over_steps, rung_table


def summary(comparison: Comparison) -> list[Block]:
    """What decides, a screen of it: verdict, places, what follows and what is unexplained, the next step; the rungs."""
    parts = (headline, likely_kinds, born_list, first_difference, consequences, next_step, rung_table)
    return [block for part in parts for block in part(comparison)]


def details(comparison: Comparison) -> list[Block]:
    """All that stands below it."""
    parts = (
        other_births, overview, detection, reproduce, evidence, modules, known, over_steps, draws, differences, calls,
        rule, ledger, declared, provenance, notes,
    )  # fmt: skip
    return [block for part in parts for block in part(comparison)]
