"""Nothing but the same bits will do."""

from __future__ import annotations

from typing import Any

from nest_ssl.compare.findings import Judgement
from nest_ssl.compare.metrics import Metrics
from nest_ssl.recording.address import Address


class SameBits:
    def bound(self, address: Address) -> tuple[float, float]:
        return 0.0, 0.0

    def judge(self, address: Address, metrics: Metrics) -> Judgement:
        return Judgement(False, "bits", {})

    def describe(self) -> dict[str, Any]:
        return {"kind": "bits"}
