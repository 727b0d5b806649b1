"""Equality of bytes, and walking two tensors in step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.compare.bits import CHUNK, as_integers, chunks, same_bits

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_tensors_have_the_same_bits(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    assert same_bits(tensor, tensor.clone())


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_changed_element_is_seen(dtype: torch.dtype) -> None:
    tensor = torch.zeros(2, 3).to(dtype)
    other = tensor.clone()
    other[1, 2] = 1
    assert not same_bits(tensor, other)


@pytest.mark.parametrize(
    "other", [torch.arange(512), torch.arange(0), torch.arange(16).view(2, 8), torch.arange(16).view(16, 1)]
)
def test_another_shape_is_another_value(other: torch.Tensor) -> None:
    """A buffer may grow in a step, as a table of positions does: no byte beyond the end is read."""
    assert not same_bits(torch.arange(16), other) and not same_bits(other, torch.arange(16))


def test_nan_equals_nan_of_the_same_payload_only() -> None:
    payloads = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert same_bits(payloads[:1], payloads[:1].clone())
    assert not same_bits(payloads[:1], payloads[1:])


def test_minus_zero_is_another_zero() -> None:
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_strides_do_not_matter() -> None:
    tensor = torch.randn(5, 7)
    assert same_bits(tensor, tensor.t().contiguous().t())


def test_complex_numbers_are_seen_in_both_parts() -> None:
    tensor = torch.tensor([1 + 2j])
    assert same_bits(tensor, tensor.clone())
    assert not same_bits(tensor, tensor.conj())
    assert as_integers(tensor).shape == (1, 2)


def test_scalars_and_empty_tensors() -> None:
    assert same_bits(torch.tensor(1.5), torch.tensor(1.5))
    assert same_bits(torch.empty(0, 3), torch.empty(0, 3))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 40), st.booleans())
def test_chunks_cover_both_tensors_in_row_major_order(shape: list[int], size: int, transposed: bool) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    other = tensor.transpose(0, -1).contiguous().transpose(0, -1) if transposed else tensor
    pieces = list(chunks(tensor, other, size))
    assert torch.cat([piece for piece, _ in pieces]).tolist() == tensor.flatten().tolist()
    assert all(torch.equal(a, b) and a.numel() <= max(size, 1) for a, b in pieces)


def test_chunks_fit_the_cache() -> None:
    tensor = torch.zeros(3, CHUNK)
    assert max(a.numel() for a, _ in chunks(tensor, tensor)) == CHUNK
