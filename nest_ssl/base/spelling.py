"""Did you mean ...: the nearest of the known words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The known word that is most like `word`; None where none is `cutoff` (0 to 1) like it."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known word, for the end of an error."""
    near = nearest(word, known)
    return f"Did you mean {near}?" if near is not None else "Leave it out."
