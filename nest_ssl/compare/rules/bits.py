"""Nothing but the same bits will do."""

from __future__ import annotations

from typing import Any

from nest_ssl.compare.findings import Judgement, Spot
from nest_ssl.compare.metrics import Metrics


class SameBits:
    def bound(self, spot: Spot) -> tuple[float, float]:
        return 0.0, 0.0

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        return Judgement(False, "bits", {})

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"kind": "bits"}
