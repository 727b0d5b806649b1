"""A bar for whoever waits at a terminal while gigabytes are read; nothing where stderr is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

_moves: Callable[[int], object] | None = None  # the bar that there is


@contextmanager
def bar(what: str, total: int) -> Iterator[None]:
    """Show how much of `total` bytes is done, by what `advance` is called with; within another bar nothing more.

    Args:
        what: is done with them.
    """
    global _moves
    if _moves is not None or not total or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        _moves = partial(shown.advance, shown.add_task(what, total=total))
        try:
            yield
        finally:
            _moves = None


def advance(size: int) -> None:
    """So many bytes more are done, in whatever thread."""
    if _moves is not None:
        _moves(size)
