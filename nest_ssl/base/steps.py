"""The one grammar of training steps, for `save_steps` and for `--steps`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from nest_ssl.base.errors import UserError

MOST = 1_000_000  # steps that a range may name


def parse_steps(value: Any) -> frozenset[int] | None:
    """Training batches from 0: ``0``, ``"0,1,2"``, ``[0, 1]``, ``"0-9"``, ``"all"`` (gives None), ``"none"``.

    Raises:
        UserError: anything else.
    """
    word = value.strip().lower() if isinstance(value, str) else value
    if word == "all":
        return None
    if word in (None, "", "none"):
        return frozenset()
    parts = word.strip("[]() ").split(",") if isinstance(word, str) else word if isinstance(word, Sequence) else [word]
    steps: set[int] = set()
    for part in parts:
        match = re.fullmatch(r"\s*([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?\s*", str(part))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MOST:
            fix = "Write 0, 0,1,2, [0,1,2], 0-9, all or none."
            raise UserError("steps that cannot be read", str(value)[:80], fix)
        steps.update(range(first, last + 1))
    return frozenset(steps)
