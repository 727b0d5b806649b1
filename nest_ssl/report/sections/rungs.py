"""How every rung stands: over all steps, step by step, and what differs in it."""

from __future__ import annotations

import math
from collections import Counter

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import STEP_RUNGS, Finding, Rung, RungName, Status
from nest_ssl.report.document import Block, Code, Heading, Inline, Paragraph, StatusWord, Text, initial, join, table
from nest_ssl.report.words import counted, heads, say, word
from nest_ssl.report.words.names import cut, labels, name, number, small

WORST = 10  # rows in a table of differences


def rung_table(comparison: Comparison) -> list[Block]:
    losses = ", ".join(f"{loss.reference:.7f}" for loss in comparison.losses if loss.reference is not None)
    rows = []
    for rung in comparison.rungs:
        sides = {"reference": number(rung.missing_reference), "candidate": number(rung.missing_candidate)}
        missing = say("missing", **sides) if rung.missing_reference or rung.missing_candidate else "0"
        what = compared(rung)
        if rung.name == "loss" and losses:
            what = say("compared.losses", what=what, losses=losses)
        shown = _shown(comparison, rung.name, rung.status)
        rows.append([word("rung", rung.name), shown, what, number(rung.differing), missing])
    heading = [Heading(say("heading.rungs"))] if comparison.first is not None else []  # below what a reader acts on
    return [*heading, table(heads("rung", "status", "compared", "differing", "missing"), rows, right=3)]


def _shown(comparison: Comparison, rung: RungName, found: Status) -> Inline:
    """Of two experiments only equal bits mean anything; that the others differ is no verdict."""
    meaningless = comparison.contract_differs and rung != "contract" and found is not Status.IDENTICAL
    return word("status", "not judged") if meaningless else StatusWord(found, word("status", found.value))


def compared(rung: Rung) -> Text:
    """What was compared: ``3 x (1,004 calls, 4 outputs)``, ``503 modules, 643 parameters``."""
    run = [tally.compared for tally in rung.tallies if tally.step is None and tally.compared]
    steps = [tally.compared for tally in rung.tallies if tally.step is not None]
    if len(run) == 1 and len(steps) == 1:
        run, steps = [run[0] + steps[0]], []
    alike = len(steps) > 1 and all(step == steps[0] for step in steps)
    counts = [*run, steps[0] if alike else sum(steps, Counter())]
    texts = [", ".join(counted(count, noun) for noun, count in units.items()) for units in counts]
    if alike and texts[-1]:
        times = say("several", count=len(steps), what=f"({texts[-1]})" if "," in texts[-1] else texts[-1])
        return join([*texts[:-1], times])
    return join(texts) or say("compared.nothing")


def over_steps(comparison: Comparison) -> list[Block]:
    losses = {loss.step: [number(loss.reference), number(loss.candidate)] for loss in comparison.losses}
    rows = []
    rungs = [rung for rung in comparison.rungs if rung.name in STEP_RUNGS]
    for step in comparison.steps:
        found = [[t for t in rung.tallies if t.step == step] for rung in rungs]
        shown = [join(dict.fromkeys(_shown(comparison, t.rung, t.status) for t in tallies)) for tallies in found]
        rows.append([number(step), *shown, *losses.get(step, ["-", "-"])])
    losses_of = [say("head.loss", label=label) for label in labels(comparison)]
    head = [*heads("step"), *(word("rung", rung.name) for rung in rungs), *losses_of]
    return [Heading(say("steps")), table(head, rows, right=2, sides=len(head) - 2)] if rows else []


def differences(comparison: Comparison) -> list[Block]:
    """A section for every rung in which something differs; it counts as the table of rungs does."""
    drawn = {(draw.moment.step, draw.rank, draw.generator) for draw in comparison.draws if draw.finding}
    blocks: list[Block] = []
    for rung in comparison.rungs:
        found = rung.findings if rung.name != "steps" else []  # each of them stands in another rung as well
        if rung.name == "draws":  # they have a table of their own, and from them the states at boundaries follow
            found = [f for f in found if (f.moment.step, f.address.rank, f.address.slot) not in drawn]
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
        blocks += finding_tables(comparison, found)
    return blocks


def finding_tables(comparison: Comparison, found: list[Finding]) -> list[Block]:
    """What has no measure, in order of execution; then what has one, by how far it is beyond what the rule allows.

    So noise in a tiny tensor does not lead, however large it is beside itself.
    """
    ranked = []
    for finding in found:
        if finding.metrics:
            ratio = finding.judgement.ratio or 0.0 if finding.judgement else math.inf  # no rule, no bound
            size = float(finding.metrics.max_abs or 0)
            ranked.append(((not finding.within, finding.metrics.nonfinite_disagree, ratio, size), finding))
    measured = [finding for _, finding in sorted(ranked, key=lambda each: each[0], reverse=True)]
    others = [finding for finding in found if not finding.metrics]
    bounded = comparison.rule["kind"] != "bits"
    rows: list[list[object]] = []
    for finding in [*others[:WORST], *measured[:WORST]]:
        metrics, judgement = finding.metrics, finding.judgement
        values = [number(finding.reference), number(finding.candidate)]
        row = ["-" if finding.moment.step < 0 else number(finding.moment.step), name(finding)]
        if metrics is None:
            rows.append([*row, finding.difference.value.replace("_", " "), *values])
            continue
        at = Code(str(list(finding.index))) if finding.index else "-"
        sizes: list[object] = [small(size) for size in (metrics.max_abs, metrics.relative, metrics.max_ulp)]
        if bounded:
            sizes += [small(judgement.ratio if judgement else None), word("within", str(finding.within))]
        rows.append([*row, at, *values, *sizes])
    sides, split = labels(comparison), len(others[:WORST])
    blocks: list[Block] = []
    if others:
        blocks += [table([*heads("step", "what", "kind"), *sides], rows[:split], sides=3)]
        blocks += cut("differences.order", WORST, others)
    if measured:
        sizes_of = [*heads("largest", "relative", "ulp"), *(heads("bound", "within") if bounded else [])]
        blocks += [table([*heads("step", "what", "at"), *sides, *sizes_of], rows[split:], right=len(sizes_of), sides=3)]
        blocks += cut("differences.worst" if bounded else "differences.largest", WORST, measured)
    return blocks
