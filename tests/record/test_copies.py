"""The same content is kept once, a changed one again, whoever changed it and however."""

from __future__ import annotations

import pytest
import torch

from nest_ssl.record.observers.copies import Copies, same_bits


def test_an_unchanged_tensor_is_kept_once_and_an_edited_one_again() -> None:
    copies, tensor = Copies(), torch.ones(3)
    first = copies.copy(tensor)
    assert copies.copy(tensor) is first
    tensor.data[0] = 2.0  # leaves no trace in the version
    second = copies.copy(tensor)
    assert first.tolist() == [1, 1, 1] and second.tolist() == [2, 1, 1]


def test_an_address_that_is_used_again_is_another_tensor() -> None:
    copies = Copies()
    for value in range(50):
        assert copies.copy(torch.full((4,), float(value))).tolist() == [value] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64,
                                   torch.complex128, torch.int64, torch.int8, torch.bool])  # fmt: skip
def test_bits_of_every_type(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0, 1, 1]).to(dtype)
    assert same_bits(tensor, tensor.clone())
    assert not same_bits(tensor, torch.tensor([0, 1, 0]).to(dtype))


def test_nan_is_itself_and_minus_zero_is_not_zero() -> None:
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


@pytest.mark.parametrize("other", [torch.zeros(2, 3), torch.zeros(6), torch.zeros(3, 2, dtype=torch.float64)])
def test_another_shape_or_type_is_another_content(other: torch.Tensor) -> None:
    assert not same_bits(torch.zeros(3, 2), other)


def test_strides_are_no_content() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert same_bits(matrix.t(), matrix.t().contiguous())


def test_the_last_call_that_returned_a_tensor_is_its_producer() -> None:
    copies, tensor, other = Copies(), torch.ones(3), torch.zeros(3)
    copies.returned(copies.keep((tensor, other)), 4)
    copies.returned(copies.keep({"y": tensor}), 7)
    inputs = copies.keep({"x": [tensor, torch.ones(3)], "z": other})
    assert copies.producers(inputs) == {"x.0": (7, "y"), "z": (4, "1")}
