"""Where each call that differs came to differ, in execution order."""

from __future__ import annotations

from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.document import Block, Code, Heading, Paragraph, table
from nest_ssl.report.words import heads, say, word
from nest_ssl.report.words.names import cut, number, own_name, small, steps_text

CALLS = 40  # rows


def calls(comparison: Comparison) -> list[Block]:
    """Of the first step with differing calls."""
    step = min((judged.step for judged in comparison.calls), default=0)
    found = [judged for judged in comparison.calls if judged.step == step]
    rows = []
    for judged in found[:CALLS]:
        module, relation = Code(judged.module or word("name", "root")), word("relation", judged.relation.value)
        largest = small(judged.worst.metrics.max_abs if judged.worst.metrics else None)
        rows.append([number(judged.order), module, judged.call, relation, Code(own_name(judged.worst)), largest])
    head = heads("order", "module", "call", "relation", "where", "largest_difference")
    blocks: list[Block] = [Heading(say("calls", steps=steps_text([step]))), Paragraph(say("calls.legend"))]
    return [*blocks, table(head, rows, right=1), *cut("calls.more", CALLS, found)] if rows else []
