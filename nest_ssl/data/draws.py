"""The draws of the batch augmentation, as NeMo makes them: from Python's global generator, before 2.5 from NumPy's.

A draw may consume a varying number of a generator's bits, so each method calls the very function that NeMo calls.

Source of the behaviour: NeMo 3.0.0 and 2.4.1 `nemo.collections.asr.modules.ssl_modules.augmentation`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np


class Draws(Protocol):
    """What the augmentation draws."""

    def fraction(self) -> float:
        """From 0 up to 1."""

    def uniform(self, low: float, high: float) -> float:
        """Between two numbers."""

    def integer(self, low: int, high: int) -> int:
        """From `low` up to, not including, `high`."""

    def choice(self, among: Sequence[int]) -> int:
        """One of several."""

    def sample(self, among: Sequence[int], count: int) -> list[int]:
        """Several different ones, in drawn order."""

    def cut(self, length: int, parts: int) -> list[int]:
        """The lengths of the pieces when every one of `length` samples is given to one of `parts` pieces."""


class PythonDraws:
    """Since NeMo 2.5."""

    def fraction(self) -> float:
        return random.random()

    def uniform(self, low: float, high: float) -> float:
        return random.uniform(low, high)

    def integer(self, low: int, high: int) -> int:
        return random.randint(low, high - 1)

    def choice(self, among: Sequence[int]) -> int:
        return random.choice(among)

    def sample(self, among: Sequence[int], count: int) -> list[int]:
        return random.sample(among, k=count)

    def cut(self, length: int, parts: int) -> list[int]:
        """One draw a sample, also for one piece, and pieces in the order of their first sample.

        A piece without a sample is left out (NeMo fails then, with an IndexError; only a tiny length can do that).
        """
        return list(Counter(random.choices(range(parts), k=length)).values())


class NumpyDraws:
    """NeMo 2.3 and 2.4."""

    def fraction(self) -> float:
        return np.random.rand()

    def uniform(self, low: float, high: float) -> float:
        return np.random.uniform(low, high)

    def integer(self, low: int, high: int) -> int:
        return int(np.random.randint(low, high))

    def choice(self, among: Sequence[int]) -> int:
        return int(np.random.choice(among))

    def sample(self, among: Sequence[int], count: int) -> list[int]:
        return np.random.choice(among, count, replace=False).tolist() if among else []

    def cut(self, length: int, parts: int) -> list[int]:
        """One multinomial draw; a piece may be empty."""
        return [int(part) for part in np.random.multinomial(length, [1 / parts] * parts)]


DrawsFrom = Literal["python", "numpy"]
DRAWS: dict[DrawsFrom, Draws] = {"python": PythonDraws(), "numpy": NumpyDraws()}
