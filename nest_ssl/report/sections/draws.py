"""Who drew how many random numbers from which generator, in a table that fits a screen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Draw, Stage
from nest_ssl.report.document import Block, Code, Heading, Inline, Paragraph, table
from nest_ssl.report.words import counted, heads, say, word
from nest_ssl.report.words.names import cut, labels, number

ROWS = 30


def draws(comparison: Comparison) -> list[Block]:
    """Draws before the steps and at one step: the first with a difference, or the first compared."""
    steps = sorted({draw.step for draw in comparison.draws if draw.step is not None})
    differing = {draw.step for draw in comparison.draws if draw.finding}
    step = next((step for step in steps if step in differing), steps[0] if steps else None)
    rows = []
    for group in collapse([draw for draw in comparison.draws if draw.step in (None, step)]):
        first = group[0]
        only = word("side", "reference" if first.reference else "candidate")
        fate = say(f"drawn.{first.fate.value}", place=_like(first.candidate)[:1], side=only)
        counts = [[draw.draws[i] for draw in group] for i in (0, 1)]
        drawn = [word("name", "not counted") if None in side else number(sum(filter(None, side))) for side in counts]
        who = ["-" if first.step is None else number(first.step), _like(first.reference or first.candidate)[:1]]
        rows.append([*who, number(len(group)), first.generator, *drawn, fate])
    if not rows:
        return []
    head = [*heads("step", "stage", "times", "generator"), *labels(comparison), ""]
    blocks: list[Block] = [Heading(say("draws")), Paragraph(say("draws.legend")), table(head, rows[:ROWS], sides=4)]
    blocks += cut("draws.more", ROWS, rows)
    if others := set(steps) - {step}:
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
    names: list[Inline] = []
    for stage in stages:
        like = re.sub(r"(?<=\.)\d+(?=\.)", "*", stage.module or word("name", "root"))
        names.append(word("drawing", stage.phase.replace("_", " ")) if stage.module is None else Code(like))
    return tuple(dict.fromkeys(names))
