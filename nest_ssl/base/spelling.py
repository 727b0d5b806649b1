"""Did you mean ...: the nearest of the known words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`; None where none shares more than half of its letters, in their order."""
    return next(iter(difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "Leave it out.") -> str:
    """A sentence that names the nearest known word, for the end of an error; `otherwise` where none is near."""
    near = nearest(word, known)
    return f"Did you mean {near}?" if near is not None else otherwise
