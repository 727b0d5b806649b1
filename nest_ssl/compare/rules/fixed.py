"""One tolerance of the user's for every tensor, whatever its scale. Simple, and blind to small gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nest_ssl.compare.findings import Judgement, Spot
from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.address import Kind

# An update at warm-up is smaller than any tolerance of the weights, so it is held against itself: no update, half of
# one or one of the opposite sign are 0.7 to 2 away. A gradient that is rounding noise makes an update that is noise.
UPDATE = 0.05
UPDATE_OF_GRADIENT = 4.0


@dataclass(frozen=True)
class FixedTolerance:
    """Each element within ``atol + rtol * |reference|``; of an update the whole, relative to itself."""

    atol: float
    rtol: float

    def bound(self, spot: Spot) -> tuple[float, float]:
        return (0.0, 0.0) if spot.address.kind == Kind.UPDATE else (self.atol, self.rtol)

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        if spot.address.kind != Kind.UPDATE:
            return Judgement(metrics.outside == 0, "fixed", {"atol": self.atol, "rtol": self.rtol}, metrics.ratio)
        bound = UPDATE + UPDATE_OF_GRADIENT * source
        ratio = None if metrics.relative is None else metrics.relative / bound
        within = not metrics.nonfinite_disagree and ratio is not None and ratio <= 1
        return Judgement(within, "fixed", {"relative": bound}, ratio)

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        return None  # they match exactly or not at all

    def describe(self) -> dict[str, Any]:
        return {"kind": "fixed", "atol": self.atol, "rtol": self.rtol}
