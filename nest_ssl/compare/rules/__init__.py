"""Where bits differ, how much is still the same number? A rule is one file.

A rule says what each element may differ by, and then judges the metrics of a whole tensor at its place.
"""

from __future__ import annotations

from typing import Any, Protocol

from nest_ssl.compare.findings import Judgement, Spot
from nest_ssl.compare.metrics import Metrics


class Rule(Protocol):
    """Decides whether a floating-point tensor with other bits is let pass."""

    def bound(self, spot: Spot) -> tuple[float, float]:
        """(atol, rtol) that `Metrics.outside` and `Metrics.ratio` are measured against at `spot`."""
        ...

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        """Judge a whole tensor.

        Args:
            source: of an update, how far its gradient is from the reference's, relative to that: it moves the update.
        """
        ...

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        """Judge a tensor of whole numbers or booleans; None where nothing but the same ones will do."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the report: at least ``kind``, the rule's name."""
        ...
