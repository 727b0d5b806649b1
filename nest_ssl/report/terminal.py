"""The verdict on the terminal: the same words as the report's first screen, in colour only where a person looks."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nest_ssl.compare.result import DIVERGED, EQUIVALENT, IDENTICAL, MISSING, Comparison
from nest_ssl.report.headline import consequences, title, verdict
from nest_ssl.report.wording import RUNG_NAMES, number, units, where

_STYLES = {IDENTICAL: "green", EQUIVALENT: "cyan", MISSING: "red", DIVERGED: "red"}
_OTHER = "yellow"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Say no more, and keep the exit code: rich's own answer is to exit with 1, which means diverged here."""
        self.quiet = True


def print_summary(comparison: Comparison, report: Path, stream: TextIO | None = None) -> None:
    """Verdict, first difference, the table of rungs, and where the report lies."""
    console = _Console(file=stream, highlight=False, soft_wrap=True)
    colour = _STYLES.get(comparison.verdict, _OTHER)
    console.print(Text(_plain(title(comparison)), style="bold"))
    console.print(Text(_plain(verdict(comparison)), style=colour))
    first = comparison.first
    if first is not None:
        values = f"{number(first.reference)} against {number(first.candidate)}"
        at = f" at {list(first.index)}" if first.index else ""
        console.print(Text(f"first difference: {_plain(where(first.place))}{at}: {values}"))
        for line in filter(None, consequences(comparison)):
            console.print(Text(_plain(line)))
    _print_rungs(console, comparison)
    console.print(Text(f"report: {report}"))


def _print_rungs(console: Console, comparison: Comparison) -> None:
    rows = [
        (RUNG_NAMES[r.name], r.status, f"{r.differing:,}", f"{r.missing_reference + r.missing_candidate:,}", units(r))
        for r in comparison.rungs
    ]
    head = ("rung", "status", "differing", "missing", "compared")
    if not console.is_terminal:  # a pipe or a log: columns without rules
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        for row in [head, *rows]:
            console.print(Text("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()))
        return
    table = Table(*head)
    for row in rows:
        status = Text(row[1], style=_STYLES.get(row[1], _OTHER))
        table.add_row(Text(row[0]), status, *(Text(text) for text in row[2:]))
    console.print(table)


def _plain(markdown: str) -> str:
    return markdown.replace("**", "").replace("`", "")
