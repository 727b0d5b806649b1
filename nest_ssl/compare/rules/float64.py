"""Both trainers in float64, tensor by tensor: a correct rewrite agrees to 1e-13, the smallest bug does not to 1e-9.

What is zero there, and what the optimizer divides by it, keeps the noise floor that it has in float32: relative to zero
no size has a meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import Judgement, Spot
from nest_ssl.compare.metrics import Metrics
from nest_ssl.compare.rules.noise_floor import is_noise
from nest_ssl.compare.rules.same_function import AGREE, VANISHES
from nest_ssl.recording.address import Kind

# Adam divides by the gradient's own size, so that elements whose gradient is zero move by noise in any precision.
_DIVIDED = (Kind.UPDATE, Kind.OPTIMIZER_STATE, Kind.PARAMETER)


@dataclass(frozen=True)
class Float64Rule:
    """Each tensor within `AGREE`, relative to itself.

    Args:
        evidence: whose floors say which tensors are noise.
    """

    evidence: Evidence

    def bound(self, spot: Spot) -> tuple[float, float]:
        return 0.0, 0.0

    def judge(self, spot: Spot, metrics: Metrics, source: float = 0.0) -> Judgement:
        floor = self.evidence.floor(spot.moment.step, spot.address)
        bound, size = AGREE, metrics.relative if metrics.relative is not None else float("inf")
        if floor and spot.address.kind in _DIVIDED:
            bound = max(bound, floor.relative_largest)
        if floor and is_noise(floor) and (metrics.max_abs or 0.0) <= VANISHES * floor.max_abs_largest:
            size = 0.0
        within = size <= bound and not metrics.nonfinite_disagree
        return Judgement(within, "float64", {"relative": bound}, size / bound)

    def judge_whole(self, spot: Spot, metrics: Metrics) -> Judgement | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {"kind": "float64", "relative": AGREE}
