"""The terminal: in colour and with rules only where a person looks at a wide screen, in plain columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from nest_ssl.base.errors import visible
from nest_ssl.compare.findings import Status
from nest_ssl.report.document import Block, Bullets, CodeBlock, Heading, Paragraph, StatusWord, Table, Text, plain

_STYLES = {Status.IDENTICAL: "green", Status.EQUIVALENT: "cyan", Status.MISSING: "red", Status.DIVERGED: "red"}
_OTHER = "yellow"
NARROW = 60  # columns; a table with rules needs more


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Say no more, and keep the exit code: rich's own answer is to exit with 1, which means diverged here."""
        self.quiet = True


def print_blocks(blocks: Sequence[Block], stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    if stream is None:  # closed, as daemons do
        return
    console = _Console(file=stream, highlight=False, soft_wrap=True)
    for block in blocks:
        if isinstance(block, Table):
            _print_table(console, block)
        elif isinstance(block, CodeBlock):
            for line in block.lines:
                console.print(_styled(console, (line,)))
        elif isinstance(block, Bullets):
            for item in block.items:
                console.print(_styled(console, ("- ", *item)))
        elif isinstance(block, Heading):
            console.print(_styled(console, block.text, "" if console.no_color else "bold"))
        else:
            console.print(_styled(console, block.text))


def _styled(console: Console, text: Text, style: str = "") -> RichText:
    """Of a sentence with the verdict in it, the whole has the verdict's colour."""
    strong = next((part for part in text if isinstance(part, StatusWord) and part.strong), None)
    shown = RichText(style=_STYLES.get(strong.status, _OTHER) if strong else style)
    for part in text:
        own = _STYLES.get(part.status, _OTHER) if isinstance(part, StatusWord) else ""
        shown.append(_readable(console, plain((part,))), own)
    return shown


def _readable(console: Console, text: str) -> str:
    """No control character reaches a terminal, and none that it cannot show stops us."""
    return visible(text).encode(console.encoding, "backslashreplace").decode(console.encoding)


def _print_table(console: Console, block: Table) -> None:
    rows = [[_styled(console, cell) for cell in row] for row in (block.columns, *block.rows)]
    if console.is_terminal and console.width >= NARROW:
        shown = RichTable(box=box.ROUNDED)
        for column, align in zip(rows[0], block.align, strict=True):
            shown.add_column(column, justify=align)
        for row in rows[1:]:
            shown.add_row(*row)
        console.print(shown)
        return
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        line = RichText("  ").join(_padded(*cell) for cell in zip(row, widths, block.align, strict=True))
        line.rstrip()
        console.print(line)


def _padded(cell: RichText, width: int, align: str) -> RichText:
    cell = cell.copy()
    if align == "right":
        cell.pad_left(width - cell.cell_len)
    else:
        cell.pad_right(width - cell.cell_len)
    return cell
