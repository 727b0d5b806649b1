"""The port is no slower than NeMo, and needs less memory: by ratio, so that it matters little which machine this is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nest_ssl.bench import cpu
from nest_ssl.bench.trainings import Bench, Side
from nest_ssl.train.optim import quickest, update_in_one_pass

# The port's number by NeMo's: 0.78, 0.67, 0.94, 0.46 and 0.74 where this was written; half as much again is too much.
AT_MOST = {"user_ms": 1.0, "forward_ms": 0.9, "backward_ms": 1.2, "optimizer_ms": 0.8, "peak_bytes": 0.9}
OTHER_ROOTS = {"optimizer_ms": 1.0}  # where torch takes roots otherwise, AdamW is two passes: 0.84 here


@pytest.mark.slow
def test_a_step_is_not_much_slower_than_nemos(release: str, tmp_path: Path) -> None:
    """Layers so wide and batches so long that they are fused. The better of two rounds, for others may disturb one."""
    sides = {name: Side(sys.executable, f"scripts/train_{name}.py") for name in ("nemo", "nest")}
    bench = Bench(sides, "cpu", "large", tmp_path)
    settings = *cpu.LAYERS, f"nemo={release}"
    (row,) = cpu.steps(bench, [cpu.Case("large, 3 of 17 layers", "large", (4, 8.0), 2, 2, settings)])
    assert "error" not in row, row
    at_most = AT_MOST if quickest() is update_in_one_pass else {**AT_MOST, **OTHER_ROOTS}
    found = {part: round(row[part][2], 2) for part in at_most}
    assert not {part: ratio for part, ratio in found.items() if ratio > at_most[part]}, found
