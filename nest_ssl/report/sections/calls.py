"""Where each call that differs came to differ, in execution order."""

from __future__ import annotations

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import CallJudgement
from nest_ssl.report.document import Block, Code, Heading, Paragraph, table
from nest_ssl.report.words import heads, say, word
from nest_ssl.report.words.names import cut, module_name, number, own_name, small, steps_text

CALLS = 40  # rows


def calls(comparison: Comparison) -> list[Block]:
    """Of the first step with differing calls."""
    step = min((judgement.step for judgement in comparison.calls), default=0)
    judged = [judgement for judgement in comparison.calls if judgement.step == step]
    if not judged:
        return []
    head = heads("order", "module", "call", "relation", "where", "largest_difference")
    heading = Heading(say("calls", steps=steps_text([step])))
    rows = table(head, map(_row, judged[:CALLS]), right=1)
    return [heading, Paragraph(say("calls.legend")), rows, *cut("calls.more", CALLS, judged)]


def _row(judged: CallJudgement) -> list[object]:
    largest = judged.worst.metrics.max_abs if judged.worst.metrics else None
    relation = word("relation", judged.relation.value)
    where = Code(own_name(judged.worst))
    return [number(judged.order), module_name(judged.module), judged.call, relation, where, small(largest)]
