"""Where bits differ, how much is still the same number? A rule is one file.

A rule says what each element may differ by, and then judges the metrics of a whole tensor at its address.
"""

from __future__ import annotations

from typing import Any, Protocol

from nest_ssl.compare.findings import Judgement
from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.address import Address


class Rule(Protocol):
    """Decides whether a floating-point tensor with other bits is `equivalent`."""

    def bound(self, address: Address) -> tuple[float, float]:
        """(atol, rtol) that `Metrics.outside` and `Metrics.ratio` are measured against at `address`."""
        ...

    def judge(self, address: Address, metrics: Metrics) -> Judgement: ...

    def describe(self) -> dict[str, Any]:
        """For the report: at least ``kind``, the rule's name."""
        ...
