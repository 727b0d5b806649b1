"""The first screen of a report: title, verdict, and the first difference."""

from __future__ import annotations

import math

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Finding, Status
from nest_ssl.recording.address import Kind
from nest_ssl.report.document import Block, Heading, Paragraph, Text, initial, join, table
from nest_ssl.report.sections.causes import cause_text, consequence_texts, note_text, remainder_text
from nest_ssl.report.words import say, status, word
from nest_ssl.report.words.names import labels, name, number, small, steps_text, where

REASONS = 3  # shown for an inconclusive verdict


def contract_differs(comparison: Comparison) -> bool:
    """Then nothing else means anything, whatever it shows."""
    return comparison.first is not None and comparison.first.rung == "contract"


def headline(comparison: Comparison) -> list[Block]:
    hints = [say("hint.steps", steps=steps_text(comparison.steps), option=",".join(map(str, comparison.steps)))]
    verdict = join([_verdict(comparison), *_weaknesses(comparison), *(hints if _steps_differ(comparison) else [])], " ")
    return [Heading(title(comparison), 1), Paragraph(verdict)]


def title(comparison: Comparison) -> Text:
    first = comparison.first
    sides = dict(zip(("reference", "candidate"), labels(comparison), strict=True))
    if first is not None and contract_differs(comparison):
        return say("title.contract", **sides, name=name(first))
    if first is not None and comparison.verdict is Status.DIVERGED:
        return say("title.diverged", **sides, where=where(first))
    return say(f"title.{comparison.verdict.value}", **sides)


def _verdict(comparison: Comparison) -> Text:
    """``identical: 12,304 of 12,304 tensors have the same bits, over steps 0 to 2, from seed 42. ...``"""
    facts, verdict = comparison.facts, comparison.verdict
    tensors = {"same": number(facts.tensors_same), "all": number(facts.tensors)}
    said: dict[str, object] = {
        "status": status(verdict, strong=True),
        "same": say("same", **tensors, steps=steps_text(comparison.steps)),
        "seed": number(comparison.reference.index.seed),
        "rule": rule_name(comparison),
    }
    if contract_differs(comparison):
        others = comparison.rung("contract").differing - 1
        return say("verdict.contract", **said, more=say("more", count=number(others)) if others > 0 else "")
    if verdict is Status.DIVERGED:
        cause = initial(cause_text(comparison), upper=False)
        return say("verdict.diverged" if cause else "verdict.unknown", **said, cause=cause)
    return say(f"verdict.{verdict.value}", **said, reasons=_reasons(comparison))


def _reasons(comparison: Comparison) -> Text:
    """Why too little was compared: the first few reasons; the notes have all."""
    absent = [note for rung in comparison.rungs for tally in rung.tallies for note in tally.absent]
    reasons = list(dict.fromkeys(map(note_text, absent)))
    if not reasons:
        return say("no_shared_step")
    more = [say("more_reasons", count=number(len(reasons) - REASONS))] if len(reasons) > REASONS else []
    return join([*reasons[:REASONS], *more], "; ")


def _weaknesses(comparison: Comparison) -> list[Text]:
    """Why equal numbers prove little."""
    weak = [explanation for explanation in comparison.explanations if explanation.weakens]
    explained = {explanation.step for explanation in weak}
    nan = [
        loss.step
        for loss in comparison.losses
        if all(side is not None and math.isnan(side) for side in (loss.reference, loss.candidate))
        and loss.step not in explained
    ]
    texts: list[Text] = list(dict.fromkeys((explanation.sentence,) for explanation in weak))
    return texts + ([say("hint.loss_nan", steps=steps_text(nan))] if nan else [])


def _steps_differ(comparison: Comparison) -> bool:
    findings = comparison.rung("contract").findings
    return bool(comparison.steps) and any(finding.address.slot == "steps" for finding in findings)


def rule_name(comparison: Comparison) -> Text:
    rule = comparison.rule
    if rule["kind"] == "fixed":
        return say("rule.fixed", atol=rule["atol"], rtol=rule["rtol"])
    settings = ", ".join(f"{key} {value}" for key, value in rule.items() if key != "kind")
    return say("rule.other", name=rule["kind"], settings=f" ({settings})" if settings else "")


def first_difference(comparison: Comparison) -> list[Block]:
    """The table of both values, and where else bits part; nothing where there is no difference."""
    first = comparison.first
    if first is None:
        return []
    rows: list[list[object]] = [[_what(first), *(_value(first, value) for value in (first.reference, first.candidate))]]
    metrics = first.metrics
    if metrics:
        sizes = (metrics.max_abs, metrics.relative, metrics.max_ulp)
        rows.append([say("first.sizes"), " / ".join(map(small, sizes)), ""])
        elements = say("first.elements_of", differing=number(metrics.differing), elements=number(metrics.elements))
        rows.append([say("first.elements"), elements, ""])
        if metrics.nan_reference or metrics.nan_candidate or metrics.nonfinite_disagree:
            rows.append([say("first.nan"), number(metrics.nan_reference), number(metrics.nan_candidate)])
            rows.append([say("first.one_sided"), number(metrics.nonfinite_disagree), ""])
    blocks: list[Block] = [table(["", *labels(comparison)], rows)]
    for key, other in (("first.bits", comparison.first_bits), ("first.beyond", comparison.first_beyond)):
        if other is not None and other is not first:
            size = say("by", size=small(other.metrics.max_abs)) if other.metrics else ""
            blocks.append(Paragraph(say(key, where=where(other), size=size)))
    return blocks


def _what(first: Finding) -> Text:
    text = name(first)
    if first.shape is not None:
        text += say("first.shape", shape=list(first.shape), dtype=first.dtype)
    return text + (say("first.index", index=list(first.index)) if first.index else ())


def _value(first: Finding, value: object) -> str:
    """What is there is shown in full where the other side lacks it; a generator's state by its first letters."""
    return str(value) if first.missing and first.address.kind is not Kind.SETTING else number(value)


def consequences(comparison: Comparison) -> list[Block]:
    if comparison.first is None or contract_differs(comparison):
        return []
    follows = join(consequence_texts(comparison), "; ") or word("name", "no_consequence")
    unexplained = join(map(remainder_text, comparison.unexplained), "; ") or word("name", "nothing")
    return [Paragraph(say("follows", what=follows)), Paragraph(say("unexplained", what=unexplained))]
