"""The draws of the batch augmentation, as NeMo makes them: from Python's global generator, before 2.5 from NumPy's.

A draw may consume a varying number of a generator's bits, so each method calls the very function that NeMo calls; `cut`
makes its thousands of draws all at once.

Source of the behaviour: NeMo 3.0.0 and 2.4.1 `nemo.collections.asr.modules.ssl_modules.augmentation`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Draws:
    """What the augmentation draws.

    Args:
        fraction: from 0 up to 1.
        uniform: between two numbers.
        integer: from the first up to, not including, the second.
        choice: one of several.
        sample: so many different ones of several, in drawn order.
        cut: the lengths of the pieces when every one of `length` samples is given to one of `parts` pieces.
    """

    fraction: Callable[[], float]
    uniform: Callable[[float, float], float]
    integer: Callable[[int, int], int]
    choice: Callable[[Sequence[int]], int]
    sample: Callable[[Sequence[int], int], list[int]]
    cut: Callable[[int, int], list[int]]


def cut_by_choices(length: int, parts: int) -> list[int]:
    """`list(Counter(random.choices(range(parts), k=length)).values())` at a tenth of its cost.

    NumPy's older generator is the same Mersenne twister and makes the same fractions of its words: it draws them from
    the state of Python's, which then has the state that it would have by itself.
    """
    version, words, gauss = random.getstate()
    twister = np.random.RandomState(0)
    twister.set_state(("MT19937", np.array(words[:-1], np.uint32), words[-1], 0, 0.0))
    pieces = (twister.random_sample(length) * parts).astype(np.int64)
    after = twister.get_state(legacy=False)["state"]
    random.setstate((version, (*after["key"].tolist(), after["pos"]), gauss))
    lengths = np.bincount(pieces)
    in_drawn_order = sorted(np.flatnonzero(lengths), key=lambda piece: int((pieces == piece).argmax()))
    return [int(lengths[piece]) for piece in in_drawn_order]


DrawsFrom = Literal["python", "numpy"]
DRAWS: dict[DrawsFrom, Draws] = {
    "python": Draws(  # since NeMo 2.5
        fraction=lambda: random.random(),
        uniform=lambda low, high: random.uniform(low, high),
        integer=lambda low, high: random.randint(low, high - 1),
        choice=lambda among: random.choice(among),
        sample=lambda among, count: random.sample(among, k=count),
        # One draw a sample, also for one piece, and pieces in the order of their first sample. A piece without a sample
        # is left out (NeMo fails then, with an IndexError; only a tiny length can do that).
        cut=cut_by_choices,
    ),
    "numpy": Draws(  # NeMo 2.3 and 2.4
        fraction=lambda: np.random.rand(),
        uniform=lambda low, high: np.random.uniform(low, high),
        integer=lambda low, high: int(np.random.randint(low, high)),
        choice=lambda among: int(np.random.choice(among)),
        sample=lambda among, count: np.random.choice(among, count, replace=False).tolist() if among else [],
        # One multinomial draw; a piece may be empty.
        cut=lambda length, parts: [int(part) for part in np.random.multinomial(length, [1 / parts] * parts)],
    ),
}
