"""One tolerance for every tensor, whatever its scale. Simple, and blind to small gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nest_ssl.compare.findings import Judgement
from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.address import Address


@dataclass(frozen=True)
class FixedTolerance:
    """Each element within ``atol + rtol * |reference|``."""

    atol: float = 1e-5
    rtol: float = 1e-5

    def bound(self, address: Address) -> tuple[float, float]:
        return self.atol, self.rtol

    def judge(self, address: Address, metrics: Metrics) -> Judgement:
        return Judgement(metrics.outside == 0, "fixed", {"atol": self.atol, "rtol": self.rtol}, metrics.ratio)

    def describe(self) -> dict[str, Any]:
        return {"kind": "fixed", "atol": self.atol, "rtol": self.rtol}
