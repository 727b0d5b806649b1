"""Who drew how many random numbers from which generator, in a table that fits a screen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Draw, Fate, Stage
from nest_ssl.report.document import Block, Code, Heading, Inline, Paragraph, Text, table
from nest_ssl.report.words import counted, say, word
from nest_ssl.report.words.names import labels, module_name, number

ROWS = 30


def draws(comparison: Comparison) -> list[Block]:
    """Draws before the steps and at one step: the first with a difference, or the first compared."""
    steps = sorted({draw.step for draw in comparison.draws if draw.step is not None})
    differing = {draw.step for draw in comparison.draws if draw.finding}
    step = next((step for step in steps if step in differing), steps[0] if steps else None)
    rows = [_row(group) for group in collapse([draw for draw in comparison.draws if draw.step in (None, step)])]
    if not rows:
        return []
    head = [*(say(f"head.{column}") for column in ("step", "stage", "times", "generator")), *labels(comparison), ""]
    blocks: list[Block] = [Heading(say("draws")), Paragraph(say("draws.legend")), table(head, rows[:ROWS])]
    if len(rows) > ROWS:
        blocks.append(Paragraph(say("draws.more", shown=number(ROWS), all=number(len(rows)))))
    others = [other for other in steps if other != step]
    if others:
        differ = len(differing & set(others))
        key = "draws.others_differ" if differ else "draws.others_same"
        blocks.append(Paragraph(say(key, count=number(differ), steps=counted(len(others), "step"))))
    return blocks


def collapse(found: Sequence[Draw]) -> list[list[Draw]]:
    """Groups of draws by like modules (``encoder.layers.*.dropout``) with one fate, in order of their first."""
    groups: dict[tuple[object, ...], list[Draw]] = {}
    for draw in found:
        key = (draw.step, draw.rank, _like(draw.reference), _like(draw.candidate), draw.generator, draw.fate)
        groups.setdefault(key, []).append(draw)
    return list(groups.values())


def _like(stages: Sequence[Stage]) -> tuple[str, ...]:
    """Modules without the numbers of layers and calls, each once; a part of training by its phase."""
    names = (
        stage.phase if stage.module is None else re.sub(r"(?<=\.)\d+(?=\.)", "*", stage.module) for stage in stages
    )
    return tuple(dict.fromkeys(names))


def _row(group: list[Draw]) -> list[object]:
    first = group[0]
    like = _like(first.reference or first.candidate)[0]
    stage: Inline = module_name(like) if first.stage.module is not None else like.replace("_", " ")
    step = "-" if first.step is None else number(first.step)
    return [step, stage, number(len(group)), first.generator, *(_drawn(group, side) for side in (0, 1)), _fate(first)]


def _drawn(group: list[Draw], side: int) -> str:
    counts = [draw.draws[side] for draw in group]
    known = [count for count in counts if count is not None]
    return number(sum(known)) if len(known) == len(counts) else word("drawn", "uncounted")


def _fate(draw: Draw) -> Text:
    if draw.fate is Fate.DRAWN_ELSEWHERE:
        return say("drawn.elsewhere", place=plain((module_name(_like(draw.candidate)[0]),)))
    if draw.fate is Fate.ONE_SIDED:
        return say("drawn.only", side=word("side", "reference" if draw.reference else "candidate"))
    return (word("drawn", draw.fate.value),)
