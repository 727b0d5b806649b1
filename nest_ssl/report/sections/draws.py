"""Who drew how many random numbers from which generator, in a table that fits a screen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Draw, Stage
from nest_ssl.report.document import Block, Heading, Inline, Paragraph, table
from nest_ssl.report.words import counted, heads, say, word
from nest_ssl.report.words.names import cut, labels, module_name, number

ROWS = 30


def draws(comparison: Comparison) -> list[Block]:
    """Draws before the steps and at one step: the first with a difference, or the first compared."""
    steps = sorted({draw.step for draw in comparison.draws if draw.step is not None})
    differing = {draw.step for draw in comparison.draws if draw.finding}
    step = next((step for step in steps if step in differing), steps[0] if steps else None)
    rows = [_row(group) for group in collapse([draw for draw in comparison.draws if draw.step in (None, step)])]
    if not rows:
        return []
    head = [*heads("step", "stage", "times", "generator"), *labels(comparison), ""]
    blocks: list[Block] = [Heading(say("draws")), Paragraph(say("draws.legend")), table(head, rows[:ROWS])]
    blocks += cut("draws.more", ROWS, rows)
    others = set(steps) - {step}
    if others:
        key = "draws.others_differ" if others & differing else "draws.others_same"
        count = number(len(others & differing))
        blocks.append(Paragraph(say(key, count=count, steps=counted(len(others), "steps"))))
    return blocks


def collapse(found: Sequence[Draw]) -> list[list[Draw]]:
    """Groups of draws by like modules (``encoder.layers.*.dropout``) with one fate, in order of their first."""
    groups: dict[tuple[object, ...], list[Draw]] = {}
    for draw in found:
        key = (draw.step, draw.rank, _like(draw.reference), _like(draw.candidate), draw.generator, draw.fate)
        groups.setdefault(key, []).append(draw)
    return list(groups.values())


def _like(stages: Sequence[Stage]) -> tuple[Inline, ...]:
    """Modules without the numbers of layers and calls, each once; a part of training by its phase."""
    names = [
        stage.phase.replace("_", " ")
        if stage.module is None
        else module_name(re.sub(r"(?<=\.)\d+(?=\.)", "*", stage.module))
        for stage in stages
    ]
    return tuple(dict.fromkeys(names))


def _row(group: list[Draw]) -> list[object]:
    first = group[0]
    side = word("side", "reference" if first.reference else "candidate")
    fate = say(f"drawn.{first.fate.value}", place=_like(first.candidate)[:1], side=side)
    step = "-" if first.step is None else number(first.step)
    stage = _like(first.reference or first.candidate)[:1]
    return [step, stage, number(len(group)), first.generator, _drawn(group, 0), _drawn(group, 1), fate]


def _drawn(group: list[Draw], side: int) -> str:
    counts = [count for draw in group if (count := draw.draws[side]) is not None]
    return number(sum(counts)) if len(counts) == len(group) else word("name", "not counted")
