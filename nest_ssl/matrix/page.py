"""docs/parity-matrix.md: every variant on both sides. Every word of a cell is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from nest_ssl.matrix.runs import Cell
from nest_ssl.report.document import Block, Bullets, Code, CodeBlock, Heading, Paragraph, Text, table

LEGEND = (
    "Written by the command below; not by hand. Each variant is one change of the tiny model of conf/ with everything "
    "random on (pairs: two changes, drawn by a seed). Real NeMo and the port build it from the same seed, in their own "
    "processes, train two steps with every call watched and one with none, and evaluate. Same bits: initial values, "
    "classes of modules, the states of Python's, NumPy's and torch's generators, inputs and outputs of every call of "
    "every module with the gradients of these, the loss, the gradient of every parameter, and every buffer are the "
    "same. Places: how many values were compared. Seconds: both sides together. Refused: neither trains it, and both "
    "say why."
)
WHY = 160  # characters of a reason


def page(cells: Mapping[str, Sequence[Cell]], commit: str) -> Iterator[Block]:
    """The whole document, from the cells of each release of NeMo."""
    yield Heading(("Which models train with NeMo's bits",), 1)
    yield Paragraph((LEGEND,))
    yield CodeBlock(("make matrix",))
    yield Bullets(tuple((summary(release, each),) for release, each in cells.items()))
    yield Paragraph((f"Measured {date.today()} at commit {commit[:7]}, torch on one CPU thread a side.",))
    for release, of_release in cells.items():
        yield Heading((f"NeMo {release}",))
        trained = [cell for cell in of_release if cell.verdict != "refused"]
        refused = [cell for cell in of_release if cell.verdict == "refused"]
        rows = [(*_named(cell), *_found(cell)) for cell in trained]
        columns = ("choice", "variant", "verdict", "first difference, or why not", "places", "seconds")
        yield table(columns, rows, right=2)
        if refused:
            yield Heading((f"What NeMo {release} does not train",), 3)
            reasons = [
                (*_named(cell), (Code(cell.reference[:WHY]),), (Code(cell.candidate[:WHY]),)) for cell in refused
            ]
            yield table(("choice", "variant", "NeMo says", "the port says"), reasons)


def summary(release: str, cells: Sequence[Cell]) -> str:
    """The sum in a sentence."""
    counts = Counter(cell.verdict for cell in cells)
    listed = ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts, key=lambda v: -counts[v]))
    places = sum(cell.places for cell in cells)
    return f"NeMo {release}: {len(cells)} variants: {listed}; {places:,} values compared."


def _named(cell: Cell) -> tuple[Text, Text]:
    return (cell.group or "-",), (cell.name,)


def _found(cell: Cell) -> tuple[Text, ...]:
    why = cell.difference or cell.reference or cell.candidate
    return (cell.verdict,), (Code(why[:WHY]),) if why else ("",), (f"{cell.places:,}",), (f"{cell.seconds:.1f}",)
