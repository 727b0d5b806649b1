"""docs/parity-matrix.md: every variant on both sides. Every word of a cell is measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

from nest_ssl.matrix.runs import Cell
from nest_ssl.report.document import Block, Code, CodeBlock, Heading, Paragraph, Text, table
from nest_ssl.report.render.markdown import render_markdown

LEGEND = (
    "Written by the command below; not by hand. Each variant is one change of the tiny model of conf/ with everything "
    "random on (pairs: two changes, drawn by a seed). Those of contrastive, prediction, patches and transducer are of "
    "the recipe wav2vec-bert with 8 negatives, unless the row is about their number: NeMo before 3.0 stops at more "
    "than there are masked steps. Real NeMo and the port build each from the same seed, in their own processes, train "
    "two steps with every call watched and one with none, and evaluate. Same bits: initial values, classes of modules, "
    "the states of Python's, NumPy's and torch's generators, inputs and outputs of every call of every module with the "
    "gradients of these, the loss, the gradient of every parameter, and every buffer are the same. Places: how many "
    "values were compared. Seconds: both sides together. Refused: neither trains it, and both say why."
)
WHY = 160  # characters of a reason
HOW = "torch on one CPU thread a side."
SIDES = {"other bits": "difference", "only NeMo trains": "candidate", "only the port trains": "reference"}


def page(release: str, cells: Sequence[Cell], commit: str, before: str = "") -> str:
    """The whole document: the part of a release, and those of the others as they were `before`, each of its day."""
    return document({**parts_of(before), release: part(release, cells, f"{measured(commit)}, {HOW}")})


def amended(release: str, cells: Sequence[Cell], order: Sequence[str], commit: str, before: str) -> str:
    """The document with these cells in place of what it says `before` of their variants, and when they were measured.

    Args:
        release: whose part.
        cells: some of it.
        order: the titles of all variants; what it says of others goes.
        commit: the cells were measured at.
        before: the document.
    """
    parts = parts_of(before)
    kept = {title_of(cell): cell for cell in (*cells_of(parts[release]), *cells)}
    when = parts[release].splitlines()[2].partition(" values compared. ")[2]
    choices = ", ".join(dict.fromkeys(cell.group or "the recipe" for cell in cells))
    when += f" {measured(commit)}: {len(cells)} of them ({choices})."
    return document({**parts, release: part(release, [kept[title] for title in order if title in kept], when)})


def document(parts: dict[str, str]) -> str:
    """What all releases share, and the part of each."""
    command = CodeBlock(("make matrix  # of NEMO_VERSION; what is here of other releases stays",))
    head = render_markdown([Heading(("Which models train with NeMo's bits",), 1), Paragraph((LEGEND,)), command])
    return "\n".join([head, *(parts[each] for each in sorted(parts, reverse=True))])


def parts_of(text: str) -> dict[str, str]:
    """The part of each release in a document, its heading first."""
    _, *found = re.split(r"^(?=## NeMo )", text, flags=re.MULTILINE)
    return {each.split()[2]: f"{each.rstrip()}\n" for each in found}


def cells_of(text: str) -> Iterator[Cell]:
    """The cells that a part shows, as far as it shows them."""
    for line in text.splitlines():
        columns = line[2:-2].split(" | ") if line.startswith("| ") else []
        if len(columns) < 4 or columns[0] in ("choice", "---"):
            continue
        group, name, *found = (column.strip("`") for column in columns)
        cell = Cell("", group.strip("-"), name, "", "", None, 0, 0.0)
        if len(found) == 2:
            yield replace(cell, reference=found[0], candidate=found[1])
        else:
            verdict, why, places, seconds = found
            cell = replace(cell, places=int(places.replace(",", "")), seconds=float(seconds))
            reason: dict[str, Any] = {SIDES[verdict]: why} if verdict in SIDES else {}
            yield replace(cell, **reason)


def part(release: str, cells: Sequence[Cell], when: str) -> str:
    """What there is of one release of NeMo, measured `when`."""
    trained = [cell for cell in cells if cell.verdict != "refused"]
    refused = [cell for cell in cells if cell.verdict == "refused"]
    rows = [(*_named(cell), *_found(cell)) for cell in trained]
    columns = ("choice", "variant", "verdict", "first difference, or why not", "places", "seconds")
    heading, sentence = Heading((f"NeMo {release}",)), Paragraph((f"{summary(release, cells)} {when}",))
    blocks: list[Block] = [heading, sentence, table(columns, rows, right=2)]
    if refused:
        reasons = [(*_named(cell), (Code(cell.reference[:WHY]),), (Code(cell.candidate[:WHY]),)) for cell in refused]
        blocks.append(Heading((f"What NeMo {release} does not train",), 3))
        blocks.append(table(("choice", "variant", "NeMo says", "the port says"), reasons))
    return render_markdown(blocks)


def measured(commit: str) -> str:
    """Today, and of which source."""
    return f"Measured {date.today()} at commit {commit[:7]}"


def title_of(cell: Cell) -> str:
    """Its variant's."""
    return f"{cell.group}: {cell.name}"


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
