"""Bytes are compared where elements and memory are the same thing, and one bit is enough."""

from __future__ import annotations

import pytest
import torch

from nest_ssl.base.memory import lies_plain, same_bytes


@pytest.mark.parametrize("place", [0, 1, 4095, 4098])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.complex64])
def test_one_bit_is_seen_wherever_it_is(dtype: torch.dtype, place: int) -> None:
    one = torch.randn(4099).to(dtype)
    other = one.clone()
    assert same_bytes(one, other) and same_bytes(one[:0], other[:0])
    other.view(torch.uint8)[place * one.itemsize + one.itemsize - 1] ^= 1
    assert not same_bytes(one, other)
    assert same_bytes(one[:place], other[:place]) and same_bytes(one[place + 1 :], other[place + 1 :])


@pytest.mark.filterwarnings("ignore:.*quantize.*:UserWarning")
def test_what_lies_otherwise_is_not_plain() -> None:
    matrix, spectrum = torch.randn(4, 6), torch.fft.rfft(torch.arange(8.0))
    assert (
        lies_plain(matrix)
        and lies_plain(torch.nn.Parameter(matrix))
        and lies_plain(matrix[1:])
        and lies_plain(spectrum)
    )
    quantized = torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8)
    others = [matrix.t(), matrix[:, 1:], matrix[:1].expand(4, -1), matrix.to_sparse(), matrix.to("meta"), quantized]
    assert not any(map(lies_plain, [*others, spectrum.conj(), spectrum.conj().imag]))
