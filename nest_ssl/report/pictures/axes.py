"""What several pictures have: axes with their ticks, marks, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from nest_ssl.report.document import Text, plain
from nest_ssl.report.pictures.svg import Paper, round_ticks, wide
from nest_ssl.report.words import say

WIDTH, LEFT, RIGHT, TOP = 960, 92, 16, 26  # of a picture, and what is kept free at its sides
Scale = Callable[[float], float]


def log_axis(paper: Paper, sizes: Iterable[float], top: float, bottom: float, name: Text) -> Scale:
    """Whole decades that hold all sizes, with their lines; returns where a size stands."""
    logs = [math.log10(size) for size in sizes if size > 0 and math.isfinite(size)] or [0.0]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    scale = linear_scale(low, high, top, bottom)
    every = max(1, (high - low) // 8)
    for decade in range(low, high + 1, every):
        paper.line("grid", LEFT, scale(decade), paper.width - RIGHT, scale(decade))
        paper.text(LEFT - 8, scale(decade) + 4, f"1e{decade:+03d}", "muted", "end")
    paper.text(4, 12, plain(name), "muted")
    return lambda size: scale(min(high, max(low, math.log10(size)))) if size > 0 else bottom


def linear_axis(paper: Paper, low: float, high: float, top: float, bottom: float, name: str) -> Scale:
    scale = linear_scale(low, high if high > low else low + abs(low) * 1e-6 + 1e-12, top, bottom)
    for tick in round_ticks(low, high, 5):
        paper.line("grid", LEFT, scale(tick), paper.width - RIGHT, scale(tick))
        paper.text(LEFT - 8, scale(tick) + 4, f"{tick:.6g}", "muted", "end")
    paper.text(4, 12, name, "muted")
    return scale


def linear_scale(low: float, high: float, top: float, bottom: float) -> Scale:
    return lambda value: bottom - (value - low) / (high - low) * (bottom - top)


def step_axis(paper: Paper, steps: tuple[int, ...], bottom: float) -> Scale:
    first, last = steps[0], max(steps[-1], steps[0] + 1)
    paper.line("axis", LEFT, bottom, paper.width - RIGHT, bottom)

    def scale(step: float) -> float:
        return LEFT + 20 + (step - first) / (last - first) * (paper.width - LEFT - RIGHT - 40)

    for step in steps if len(steps) <= 12 else steps[:: -(-len(steps) // 12)]:
        paper.line("axis", scale(step), bottom, scale(step), bottom + 4)
        paper.text(scale(step), bottom + 18, str(step), "muted", "middle")
    paper.text(paper.width - RIGHT, bottom + 34, plain(say("head.step")), "muted", "end")
    return scale


def mark(paper: Paper, kind: str, number: int, x: float, y: float) -> None:
    """A mark of its own form for each curve, so that colour is not needed."""
    forms = ("m-5 -5h10v10h-10z", "m0 -6l6 6l-6 6l-6 -6z", "m-6 5h12l-6 -11z", "m-6 -5h12l-6 11z", "m-2 -6h4v12h-4z")
    paper.add("path", kind, d=f"M{x:.1f} {y:.1f}{forms[number % len(forms)]}")


def legend(paper: Paper, entries: Iterable[tuple[str, str]], y: float) -> None:
    x = float(LEFT)
    for kind, text in entries:
        paper.add("rect", kind, x=x, y=y - 10, width=12, height=12)
        paper.text(x + 18, y, text)
        x += 40 + wide(text)
