"""How far apart: against plain definitions, over strange numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from nest_ssl.compare.bits import CHUNK, same_bits
from nest_ssl.compare.metrics import Metrics, measure, typical_row

FLOATS = st.floats(width=32, allow_subnormal=True)
PAIRS = st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=40)
INTEGERS = st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), min_size=1, max_size=20)


def of(reference: object, candidate: object, dtype: torch.dtype = torch.float32, atol: float = 0.0) -> Metrics:
    return measure(torch.tensor(reference, dtype=dtype), torch.tensor(candidate, dtype=dtype), atol, 0.0)


@given(PAIRS)
def test_counts_and_sizes_follow_their_definitions(pairs: list[tuple[float, float]]) -> None:
    a, b = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    assume(not same_bits(a, b))
    metrics = measure(a, b, 1e-5, 1e-5)
    x, y = a.double().numpy(), b.double().numpy()
    finite = np.isfinite(x) & np.isfinite(y)
    agree = finite | (np.isnan(x) & np.isnan(y)) | ((x == y) & ~np.isnan(x))
    assert metrics.differing == int((a.view(torch.int32) != b.view(torch.int32)).sum())
    assert metrics.nonfinite_disagree == int((~agree).sum())
    assert (metrics.nan_reference, metrics.nan_candidate) == (np.isnan(x).sum(), np.isnan(y).sum())
    distance = np.abs(y[finite] - x[finite])
    beyond = distance > 1e-5 + 1e-5 * np.abs(x[finite])
    assert metrics.outside == int(beyond.sum()) + int((~agree).sum())
    assert metrics.max_abs == (distance.max() if finite.any() else None)


@given(PAIRS)
def test_the_index_points_at_unlike_bits(pairs: list[tuple[float, float]]) -> None:
    a, b = (torch.tensor(side, dtype=torch.float32) for side in zip(*pairs, strict=True))
    assume(not same_bits(a, b))
    metrics = measure(a, b, 0.0, 0.0)
    assert not same_bits(a[metrics.index], b[metrics.index])


@given(FLOATS, st.integers(0, 1000))
def test_ulp_counts_the_floats_between(start: float, steps: int) -> None:
    assume(abs(start) < 1e38)
    end = np.float32(start)
    for _ in range(min(steps, 20)):
        end = np.nextafter(end, np.float32(np.inf))
    assume(np.float32(start).tobytes() != end.tobytes())
    assert of([start], [float(end)]).max_ulp == min(steps, 20)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_ulp_in_every_float_type(dtype: torch.dtype) -> None:
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    a = torch.tensor([1.0, -1.0], dtype=dtype)
    assert measure(a, (a.view(integer) + 1).view(dtype), 0.0, 0.0).max_ulp == 1


def test_ulp_from_the_lowest_to_the_highest_float64_does_not_overflow() -> None:
    top = torch.finfo(torch.float64).max
    assert of([-top], [top], torch.float64).max_ulp == 2 * 0x7FEFFFFFFFFFFFFF


@given(INTEGERS)
def test_integers_never_overflow(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(side, dtype=torch.int64) for side in zip(*pairs, strict=True))
    assume(not torch.equal(a, b))
    metrics = measure(a, b, 1e9, 1e9)
    assert metrics.max_abs == max(abs(x - y) for x, y in pairs)
    assert metrics.outside == metrics.differing == sum(x != y for x, y in pairs)
    assert metrics.reference != metrics.candidate


def test_booleans_have_no_tolerance() -> None:
    metrics = of([True, False], [True, True], torch.bool, atol=5.0)
    assert (metrics.outside, metrics.index, metrics.reference, metrics.candidate) == (1, (1,), False, True)


def test_nan_on_one_side_is_shown_first_and_is_outside() -> None:
    metrics = of([1.0, 2.0, 3.0], [9.0, math.nan, 3.0], atol=100.0)
    assert metrics.index == (1,)
    assert (metrics.outside, metrics.nonfinite_disagree, metrics.max_abs) == (1, 1, 8.0)


def test_nan_on_both_sides_agrees() -> None:
    metrics = of([math.nan, 1.0], [math.nan, 1.5], atol=1.0)
    assert (metrics.outside, metrics.nonfinite_disagree, metrics.max_abs, metrics.index) == (0, 0, 0.5, (1,))


def test_infinities_of_unlike_sign_disagree() -> None:
    assert of([math.inf, math.inf], [math.inf, -math.inf], atol=1e30).outside == 1


def test_an_infinity_is_outside_however_wide_the_tolerance() -> None:
    assert of([1.0], [math.inf], atol=1e30).outside == 1


def test_zeros_of_unlike_sign_differ_in_bits_only() -> None:
    metrics = of([0.0, 1.0], [-0.0, 1.0])
    assert (metrics.differing, metrics.outside, metrics.max_abs, metrics.max_ulp, metrics.index) == (1, 0, 0.0, 0, (0,))


def test_relative_and_cosine() -> None:
    metrics = of([3.0, 4.0], [4.0, 3.0])
    assert metrics.relative == pytest.approx(math.sqrt(2) / 5)
    assert metrics.cosine == pytest.approx(24 / 25)


def test_five_against_zero_is_not_hidden_by_a_statistic() -> None:
    metrics = of([0.0, 0.0], [5.0, 0.0])
    assert (metrics.max_abs, metrics.relative, metrics.cosine) == (5.0, math.inf, None)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_chunks_are_summed_and_located_right(size: int) -> None:
    a = torch.randn(size, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[-1] += 1.0
    metrics = measure(a, b, 0.5, 0.0)
    assert (metrics.index, metrics.differing, metrics.outside) == ((size - 1,), 1, 1)
    assert metrics.relative == pytest.approx(float((b.double() - a.double()).norm() / a.double().norm()), rel=1e-9)


def test_a_transposed_tensor_is_indexed_in_its_own_shape() -> None:
    a = torch.zeros(300, 200).t()
    b = a.clone()
    b[7, 11] = 1.0
    assert measure(a, b, 0.0, 0.0).index == (7, 11)
    assert measure(b, a, 0.0, 0.0).index == (7, 11)


def test_scalars_have_an_empty_index() -> None:
    assert of(1.0, 2.0).index == ()


def test_complex_numbers_are_measured_in_both_parts() -> None:
    metrics = measure(torch.tensor([1 + 2j]), torch.tensor([1 + 5j]), 0.0, 0.0)
    assert (metrics.max_abs, metrics.index) == (3.0, (0, 1))


@pytest.mark.parametrize(("dtype", "zeros"), [(torch.float16, 13), (torch.bfloat16, 16), (torch.float32, 0)])
def test_values_of_a_narrower_format_leave_bits_unused(dtype: torch.dtype, zeros: int) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.5
    assert measure(values, values.to(dtype).float() + (dtype is torch.float32) * 1e-6, 0.0, 0.0).unused == (0, zeros)
    assert measure(values, torch.zeros(1000), 0.0, 0.0).unused == (0, 23)


def test_most_rows_say_what_a_few_rows_of_noise_hide() -> None:
    one = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    one[:, 8] = 0.0
    noisy = one.clone()
    noisy[:, :3] *= -1.0
    assert typical_row(one, noisy) == 0.0 and typical_row(one, noisy * 1.5) == pytest.approx(0.5)
    assert typical_row(one[0, 0, 0], one[0, 0, 0] * 1.5) == pytest.approx(0.5)
    for nothing in (torch.zeros(3, 4), torch.empty(0, 4), torch.full((3, 4), torch.nan)):
        assert typical_row(nothing, nothing) == 0.0
    assert typical_row(torch.zeros(3, 4), torch.ones(3, 4)) > 1e300
