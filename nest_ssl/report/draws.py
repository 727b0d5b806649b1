"""The section on random draws: who drew how many numbers from which generator, in a table that fits a screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nest_ssl.compare.result import DRAWN_ELSEWHERE, ONE_SIDED, Comparison, Draw
from nest_ssl.report.wording import code, counted, labels, table

ROWS = 30
_LEGEND = (
    "Numbers drawn (32-bit words; on a GPU, the generator's offset), by the module call or stage that drew them; calls "
    "of like modules in one line. came in: as many numbers, from another state of the generator."
)


def draws_section(comparison: Comparison) -> list[str]:
    """Draws before the steps and at one step: the first with a difference, or the first compared."""
    shown = shown_draws(comparison.draws)
    if not shown:
        return []
    rows = [_row(group) for group in collapse(shown)]
    head = ["step", "stage", "times", "generator", *labels(comparison), ""]
    more = [f"{ROWS} of {len(rows):,} lines; `report.json` has all draws.", ""] if len(rows) > ROWS else []
    return ["## Random draws", "", _LEGEND, "", *table(head, rows[:ROWS]), *more, *_other_steps(comparison, shown)]


def shown_draws(draws: Sequence[Draw]) -> list[Draw]:
    """Those before the steps, and those of the step that matters most."""
    steps = [draw.step for draw in draws if draw.step is not None]
    differing = [draw.step for draw in draws if draw.step is not None and draw.difference]
    step = min(differing or steps, default=None)
    return [draw for draw in draws if draw.step in (None, step)]


def collapse(draws: Sequence[Draw]) -> list[list[Draw]]:
    """Groups of draws by like modules (``encoder.layers.*.dropout``) with one fate, in order of their first."""
    groups: dict[tuple[Any, ...], list[Draw]] = {}
    for draw in draws:
        key = (draw.step, draw.rank, _like(draw.reference), _like(draw.candidate), draw.generator, draw.relation)
        groups.setdefault(key, []).append(draw)
    return list(groups.values())


def _row(group: list[Draw]) -> list[str]:
    first = group[0]
    step = "-" if first.step is None else str(first.step)
    stage = _like(first.reference or first.candidate)[0]
    names = code(stage or "(root)") if "#" in first.stage else stage.replace("_", " ")
    return [step, names, f"{len(group):,}", first.generator, *(_numbers(group, side) for side in (0, 1)), _fate(first)]


def _like(stages: Sequence[str]) -> tuple[str, ...]:
    """Modules without the numbers of layers and calls, each once."""
    names = (re.sub(r"(?<=\.)\d+(?=\.)", "*", stage.partition("#")[0]) for stage in stages)
    return tuple(dict.fromkeys(names))


def _numbers(group: list[Draw], side: int) -> str:
    counts = [draw.draws[side] for draw in group]
    return "uncounted" if None in counts else f"{sum(count for count in counts if count is not None):,}"


def _fate(draw: Draw) -> str:
    if draw.relation == DRAWN_ELSEWHERE:
        return f"same, drawn in {code(_like(draw.candidate)[0] or '(root)')}"
    if draw.relation == ONE_SIDED:
        return "only in the reference" if draw.reference else "only in the candidate"
    return draw.relation


def _other_steps(comparison: Comparison, shown: list[Draw]) -> list[str]:
    steps = {draw.step for draw in comparison.draws} - {draw.step for draw in shown}
    differing = {draw.step for draw in comparison.draws if draw.difference and draw.step in steps}
    if not steps:
        return []
    if not differing:
        return [f"At the other {counted(len(steps), 'step')} compared, all draws are the same.", ""]
    return [f"Draws differ at {len(differing):,} of the other {counted(len(steps), 'step')}, too.", ""]
