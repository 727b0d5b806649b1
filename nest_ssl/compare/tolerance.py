"""Where bits differ, how much is still the same number? One seam, so that better rules can take this one's place.

A rule gives the elementwise bound that the metrics count against, and then judges the metrics of a whole tensor at its
place. A noise floor, measured on this model and batch, would use the place and `Metrics.relative`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from nest_ssl.compare.metrics import Metrics
from nest_ssl.compare.result import Place

DEFAULT_ATOL = 1e-5
DEFAULT_RTOL = 1e-5


class Tolerance(Protocol):
    """Decides whether a floating-point tensor whose bits differ is `equivalent`."""

    def bound(self, place: Place) -> tuple[float, float]:
        """(atol, rtol) at `place`: an element is outside where |candidate - reference| > atol + rtol * |reference|."""
        ...

    def accepts(self, place: Place, metrics: Metrics) -> bool: ...

    def describe(self) -> dict[str, Any]:
        """For the report: at least ``kind``."""
        ...


@dataclass(frozen=True)
class FixedTolerance:
    """One `atol` and `rtol` for every tensor, whatever its scale. Simple, and blind to small gradients."""

    atol: float = DEFAULT_ATOL
    rtol: float = DEFAULT_RTOL

    def bound(self, place: Place) -> tuple[float, float]:
        return self.atol, self.rtol

    def accepts(self, place: Place, metrics: Metrics) -> bool:
        return metrics.outside == 0

    def describe(self) -> dict[str, Any]:
        return {"kind": "fixed", "atol": self.atol, "rtol": self.rtol}
