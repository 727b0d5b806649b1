"""docs/parity-matrix.md: every variant on both sides. Every word of a cell is measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date

from nest_ssl.matrix.runs import Cell
from nest_ssl.report.document import Block, Code, CodeBlock, Heading, Paragraph, Text, table
from nest_ssl.report.render.markdown import render_markdown

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


def page(release: str, cells: Sequence[Cell], commit: str, before: str = "") -> str:
    """The whole document: the part of a release, and those of the others as they were `before`, each of its day."""
    blocks = list(part(release, cells, commit))
    parts = {**parts_of(before), release: render_markdown(blocks)}
    command = CodeBlock(("make matrix  # of NEMO_VERSION; what is here of other releases stays",))
    head = render_markdown([Heading(("Which models train with NeMo's bits",), 1), Paragraph((LEGEND,)), command])
    return "\n".join([head, *(parts[each] for each in sorted(parts, reverse=True))])


def parts_of(document: str) -> dict[str, str]:
    """The part of each release in it, its heading first."""
    _, *found = re.split(r"^(?=## NeMo )", document, flags=re.MULTILINE)
    return {text.split()[2]: f"{text.rstrip()}\n" for text in found}


def part(release: str, cells: Sequence[Cell], commit: str) -> Iterator[Block]:
    """What there is of one release of NeMo."""
    yield Heading((f"NeMo {release}",))
    when = f"Measured {date.today()} at commit {commit[:7]}, torch on one CPU thread a side."
    yield Paragraph((f"{summary(release, cells)} {when}",))
    trained = [cell for cell in cells if cell.verdict != "refused"]
    refused = [cell for cell in cells if cell.verdict == "refused"]
    rows = [(*_named(cell), *_found(cell)) for cell in trained]
    columns = ("choice", "variant", "verdict", "first difference, or why not", "places", "seconds")
    yield table(columns, rows, right=2)
    if refused:
        yield Heading((f"What NeMo {release} does not train",), 3)
        reasons = [(*_named(cell), (Code(cell.reference[:WHY]),), (Code(cell.candidate[:WHY]),)) for cell in refused]
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
