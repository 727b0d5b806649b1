"""How every rung stands: over all steps, step by step, and what differs in it."""

from __future__ import annotations

import math
from collections import Counter

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Finding, Rung, RungName, Status
from nest_ssl.report.document import Block, Code, Heading, Inline, Paragraph, Text, initial, join, table
from nest_ssl.report.sections.headline import contract_differs
from nest_ssl.report.words import counted, heads, say, status, word
from nest_ssl.report.words.names import cut, labels, name, number, small

WORST = 10  # rows in a table of differences
_STEP_RUNGS: tuple[RungName, ...] = ("batch", "draws", "forward", "loss", "gradients", "weights")


def rung_table(comparison: Comparison) -> list[Block]:
    losses = ", ".join(f"{loss.reference:.7f}" for loss in comparison.losses if loss.reference is not None)
    rows = []
    for rung in comparison.rungs:
        sides = {"reference": number(rung.missing_reference), "candidate": number(rung.missing_candidate)}
        missing = say("missing", **sides) if rung.missing_reference or rung.missing_candidate else "0"
        compared = _compared(rung)
        if rung.name == "loss" and losses:
            compared = say("compared.losses", what=compared, losses=losses)
        shown = _shown(comparison, rung.name, rung.status)
        rows.append([word("rung", rung.name), shown, compared, number(rung.differing), missing])
    return [table(heads("rung", "status", "compared", "differing", "missing"), rows, right=3)]


def _shown(comparison: Comparison, rung: RungName, found: Status) -> Inline:
    """Of two experiments only equal bits mean anything; that the others differ is no verdict."""
    meaningless = contract_differs(comparison) and rung != "contract" and found is not Status.IDENTICAL
    return word("status", "not judged") if meaningless else status(found)


def _compared(rung: Rung) -> Text:
    """What was compared: ``3 x (1,004 calls, 4 outputs)``, ``503 modules, 643 parameters``."""
    run = [tally.compared for tally in rung.tallies if tally.step is None and tally.compared]
    steps = [tally.compared for tally in rung.tallies if tally.step is not None]
    if len(run) == 1 and len(steps) == 1:
        run, steps = [run[0] + steps[0]], []
    if len(steps) > 1 and steps[0] and all(step == steps[0] for step in steps):
        units = _units(steps[0])
        repeated = say("several", count=len(steps), what=f"({units})" if "," in units else units)
    else:
        repeated = (_units(sum(steps, Counter())),)
    return join([*map(_units, run), repeated]) or say("compared.nothing")


def _units(counts: Counter[str]) -> str:
    return ", ".join(counted(count, noun) for noun, count in counts.items())


def over_steps(comparison: Comparison) -> list[Block]:
    losses = {loss.step: [number(loss.reference), number(loss.candidate)] for loss in comparison.losses}
    rows = []
    for step in comparison.steps:
        found = [[t for t in comparison.rung(rung).tallies if t.step == step] for rung in _STEP_RUNGS]
        shown = [join(dict.fromkeys(_shown(comparison, t.rung, t.status) for t in tallies)) for tallies in found]
        rows.append([number(step), *shown, *losses.get(step, ["-", "-"])])
    losses_of = [say("head.loss", label=label) for label in labels(comparison)]
    head = [*heads("step"), *(word("rung", rung) for rung in _STEP_RUNGS), *losses_of]
    return [Heading(say("steps")), table(head, rows, right=2)] if rows else []


def differences(comparison: Comparison) -> list[Block]:
    """A section for every rung in which something differs; it counts as the table of rungs does."""
    blocks: list[Block] = []
    for rung in comparison.rungs:
        found = _listed(comparison, rung)
        if not found:
            continue
        missing = rung.missing_reference + rung.missing_candidate
        counts = [say("rung.differ", count=number(rung.differing), all=number(rung.compared))] if rung.differing else []
        counts += [say("rung.missing", count=number(missing))] if missing else []
        title = initial((word("rung", rung.name),), upper=True)
        blocks.append(Heading(say("rung", rung=title, counts=join(counts))))
        if len(found) > rung.differing + missing:
            unit = say("places.forward" if rung.name == "forward" else "places.other")
            blocks.append(Paragraph(say("rung.places", places=counted(len(found), "places"), unit=unit)))
        blocks += _unmeasured(comparison, [finding for finding in found if not finding.metrics])
        blocks += _measured(comparison, [finding for finding in found if finding.metrics])
    return blocks


def _listed(comparison: Comparison, rung: Rung) -> list[Finding]:
    """Draws have a table of their own; states at boundaries follow from them, unless nothing drew from that one."""
    if rung.name != "draws":
        return rung.findings if rung.name != "steps" else []
    drawn = {(draw.moment.step, draw.rank, draw.generator) for draw in comparison.draws if draw.finding}
    return [f for f in rung.findings if (f.moment.step, f.address.rank, f.address.slot) not in drawn]


def _unmeasured(comparison: Comparison, found: list[Finding]) -> list[Block]:
    rows = [[_step(f), name(f), f.difference.value.replace("_", " "), *_values(f)] for f in found[:WORST]]
    head = [*heads("step", "what", "kind"), *labels(comparison)]
    return [table(head, rows), *cut("differences.order", WORST, found)] if rows else []


def _measured(comparison: Comparison, found: list[Finding]) -> list[Block]:
    rows = [_row(finding) for finding in sorted(found, key=_rank, reverse=True)[:WORST]]
    sizes = heads("largest", "relative", "ulp", "bound", "within")
    head = [*heads("step", "what", "at"), *labels(comparison), *sizes]
    return [table(head, rows, right=5), *cut("differences.worst", WORST, found)] if rows else []


def _row(finding: Finding) -> list[object]:
    metrics, judgement = finding.metrics, finding.judgement
    assert metrics is not None
    at = Code(str(list(finding.index))) if finding.index else "-"
    sizes = map(small, (metrics.max_abs, metrics.relative, metrics.max_ulp, judgement.ratio if judgement else None))
    return [_step(finding), name(finding), at, *_values(finding), *sizes, word("within", str(finding.within))]


def _rank(finding: Finding) -> tuple[bool, int, float, float]:
    """By how far beyond what the rule allows, so that noise in a tiny tensor does not lead; no rule, no bound."""
    metrics, judgement = finding.metrics, finding.judgement
    assert metrics is not None
    ratio = math.inf if judgement is None else judgement.ratio or 0.0
    return not finding.within, metrics.nonfinite_disagree, ratio, float(metrics.max_abs or 0.0)


def _values(finding: Finding) -> list[str]:
    return [number(finding.reference), number(finding.candidate)]


def _step(finding: Finding) -> str:
    return "-" if finding.moment.step < 0 else number(finding.moment.step)
