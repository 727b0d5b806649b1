"""Names and numbers as a reader wants them: thousands separators, units, no hashes."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from nest_ssl.compare.result import Comparison, Difference, Place, Rung

RUNG_NAMES = {
    "contract": "contract",
    "structure": "structure",
    "initial_weights": "initial weights",
    "batch": "batch",
    "draws": "random draws",
    "forward": "forward",
    "loss": "loss",
    "gradients": "gradients",
    "weights": "after the step",
    "steps": "over steps",
}


LONGEST = 120  # characters of a value that is text
_SINGULAR = {"losses": "loss"}


def labels(comparison: Comparison) -> tuple[str, str]:
    """What to call the two sides; told apart where the same trainer stands on both."""
    reference, candidate = comparison.reference.label, comparison.candidate.label
    if reference != candidate:
        return reference, candidate
    return f"{reference} (reference)", f"{candidate} (candidate)"


def number(value: Any) -> str:
    """A value as short as it stays exact to about float32; counts with separators."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else str(value)
    text = str(value)
    if re.fullmatch("[0-9a-f]{16,}", text):  # a digest: report.json has all of it
        return f"{text[:7]}..."
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def small(value: float | int | None) -> str:
    """A size of a difference, to two digits; whole numbers in full."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1e}"


def counted(count: int, noun: str) -> str:
    """``1 thread``, ``2 threads``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def cell(text: Any) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return " ".join(str(text).replace("|", "\\|").split())


def code(name: str) -> str:
    return f"`{cell(name).replace('`', '')}`"


def table(head: list[str], rows: list[list[Any]], right: int = 0) -> list[str]:
    """A Markdown table; the last `right` columns hold numbers."""
    marks = ["---"] * (len(head) - right) + ["--:"] * right
    lines = [head, marks, *rows]
    return ["| " + " | ".join(cell(value) for value in line) + " |" for line in lines] + [""]


def steps_text(steps: list[int]) -> str:
    """``step 0``, ``steps 0 to 2``, ``steps 0, 9``."""
    if len(steps) <= 1:
        return f"step {steps[0]}" if steps else "no step"
    if steps == list(range(steps[0], steps[-1] + 1)):
        return f"steps {steps[0]} to {steps[-1]}"
    return f"steps {', '.join(map(str, steps))}"


def where(place: Place) -> str:
    """``step 0, forward, `encoder.layers.3`, call 1, `output```: as much of a place as there is."""
    parts = [] if place.step is None else [f"step {place.step}"]
    parts += [f"rank {place.rank}"] if place.rank else []
    parts.append(RUNG_NAMES[place.rung])
    return ", ".join([*parts, *name_parts(place)])


def name_parts(place: Place) -> list[str]:
    parts = [] if place.module is None else [code(place.module or "(root)")]
    parts += [f"call {place.call}"] if place.call else []
    return parts + ([code(place.tensor)] if place.tensor else [])


def name(place: Place) -> str:
    return ", ".join(name_parts(place)) or RUNG_NAMES[place.rung]


def units(rung: Rung) -> str:
    """What was compared: ``3 x (1,004 calls, 4 outputs)``, ``503 modules, 643 parameters``."""
    counts = [tally.compared for tally in rung.tallies if tally.step is not None or tally.compared]
    if not counts or not sum(counts, Counter()):
        return "nothing"
    if len(counts) == 2 and rung.tallies[0].step is None:  # before the steps, and one step
        return _units(counts[0] + counts[1])
    run = [_units(count) for count, tally in zip(counts, rung.tallies, strict=False) if tally.step is None]
    steps = [_units(tally.compared) for tally in rung.tallies if tally.step is not None]
    if len(steps) > 1 and len(set(steps)) == 1:
        steps = [f"{len(steps)} x ({steps[0]})" if "," in steps[0] else f"{len(steps)} x {steps[0]}"]
    elif len(steps) > 1:
        total = sum((tally.compared for tally in rung.tallies if tally.step is not None), Counter())
        steps = [_units(total)]
    return ", ".join([*run, *steps])


def _units(count: Counter[str]) -> str:
    return ", ".join(f"{n:,} {_SINGULAR.get(unit, unit[:-1]) if n == 1 else unit}" for unit, n in count.items())


def sizes(difference: Difference) -> str:
    """``4.1e-03 / 2.2e-02 / 78,412``: largest difference, relative, ULP."""
    metrics = difference.metrics
    if metrics is None:
        return "-"
    return " / ".join(small(value) for value in (metrics.max_abs, metrics.relative, metrics.max_ulp))
