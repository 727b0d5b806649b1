"""Where each call that differs came to differ, in execution order."""

from __future__ import annotations

from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.document import Block, Code, Heading, Paragraph, table
from nest_ssl.report.words import say
from nest_ssl.report.words.names import module_name, number, own_name, small, steps_text

CALLS = 40  # rows


def calls(comparison: Comparison) -> list[Block]:
    """Of the first step with differing calls."""
    step = min((judgement.step for judgement in comparison.calls), default=0)
    judged = [judgement for judgement in comparison.calls if judgement.step == step]
    if not judged:
        return []
    rows = [
        [
            number(judgement.order),
            module_name(judgement.module),
            number(judgement.call),
            judgement.relation.value,
            Code(own_name(judgement.worst)),
            small(judgement.worst.metrics.max_abs if judgement.worst.metrics else None),
        ]
        for judgement in judged[:CALLS]
    ]
    columns = ("order", "module", "call", "relation", "where", "largest_difference")
    blocks: list[Block] = [Heading(say("calls", steps=steps_text([step]))), Paragraph(say("calls.legend"))]
    blocks.append(table([say(f"head.{column}") for column in columns], rows, right=1))
    if len(judged) > CALLS:
        blocks.append(Paragraph(say("calls.more", shown=number(CALLS), all=number(len(judged)))))
    return blocks
