"""`trainer.precision=64-true`, a diagnostic: a small bug and mere rounding, alike in float32, lie far apart there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_planted_faults import (
    EXPECTED,
    WHOLE,
    Plant,
    compare,
    judged,
    named,
    norm_eps,
    record,
    recorded_once,
    residual_factor,
    split_k_product,
)

FLOAT64 = "trainer.precision=64-true"
# Measured, the least power of ten that lets them pass. In float32: both bugs and the correct rewrite at 1e-4.
# In float64: the bugs at 1e-5 and 1e-6, the rewrite at 1e-12.
STRICT = 1e-9


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_once(tmp_path_factory, None, FLOAT64)


@pytest.mark.parametrize("plant", [norm_eps, residual_factor], ids=named)
def test_a_bug_that_float32_calls_equivalent_stands_out(reference: Path, tmp_path: Path, plant: Plant) -> None:
    record(tmp_path / "nest", plant, FLOAT64)
    assert judged(compare(reference, tmp_path / "nest", STRICT)) == EXPECTED[f"{plant.__name__} in float64"]


def test_a_correct_rewrite_does_not(reference: Path, tmp_path: Path) -> None:
    record(tmp_path / "nest", split_k_product, FLOAT64)
    assert judged(compare(reference, tmp_path / "nest", STRICT)) == EXPECTED["split_k_product in float64"]


def test_in_float32_that_tolerance_cannot_tell_them_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    reference, rewrite = (recorded_once(tmp_path_factory, each, *WHOLE) for each in (None, split_k_product))
    found = judged(compare(reference, rewrite, STRICT))
    assert found == EXPECTED["split_k_product in float32"]
