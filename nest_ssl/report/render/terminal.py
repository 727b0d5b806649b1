"""The terminal: in colour and with rules only where a person looks at a wide screen, in plain columns elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from nest_ssl.base.errors import visible
from nest_ssl.compare.findings import Status
from nest_ssl.report.document import (
    Block,
    Bullets,
    CodeBlock,
    Figure,
    Heading,
    Paragraph,
    StatusWord,
    Table,
    Text,
    plain,
)

_STYLES = {Status.IDENTICAL: "green", Status.EQUIVALENT: "cyan", Status.MISSING: "red", Status.DIVERGED: "red"}
_OTHER = "yellow"
NARROW = 60  # columns; a table with rules needs more


def print_blocks(blocks: Sequence[Block], stream: TextIO | None = None) -> None:
    console = Console(file=stream, highlight=False, soft_wrap=True)
    for block in blocks:
        if isinstance(block, Table):
            _print_table(console, block)
            continue
        lines: Sequence[Text] = [block.text] if isinstance(block, (Heading, Paragraph)) else []
        if isinstance(block, CodeBlock):
            lines = [(line,) for line in block.lines]
        elif isinstance(block, Figure):
            lines = [block.alt]
        elif isinstance(block, Bullets):
            lines = [("- ", *item) for item in block.items]
        for line in lines:
            console.print(_styled(console, line, "bold" if isinstance(block, Heading) and not console.no_color else ""))


def _styled(console: Console, text: Text, style: str = "") -> RichText:
    """What the terminal can show, and no control character; with the verdict in it, all has the verdict's colour."""
    shown = RichText(style=style)
    for part in text:
        words = visible(plain((part,))).encode(console.encoding, "backslashreplace").decode(console.encoding)
        colour = _STYLES.get(part.status, _OTHER) if isinstance(part, StatusWord) else ""
        if isinstance(part, StatusWord) and part.strong:
            shown.style = colour
        shown.append(words, colour)
    return shown


def _print_table(console: Console, block: Table) -> None:
    rows = [[_styled(console, cell) for cell in row] for row in (block.columns, *block.rows)]
    if console.is_terminal and console.width >= NARROW:
        shown = RichTable(header_style="" if console.no_color else "bold")
        for column, align in zip(rows[0], block.align, strict=True):
            shown.add_column(column, justify=align)
        for row in rows[1:]:
            shown.add_row(*row)
        console.print(shown)
        return
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        for cell, width, align in zip(row, widths, block.align, strict=True):
            cell.align(align, width)
        line = RichText("  ").join(row)
        line.rstrip()
        console.print(line)
