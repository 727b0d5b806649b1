"""Loops over pairs of frames have the bits of torch's operators."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from nest_ssl.kernels import pairs
from nest_ssl.kernels.available import PAIRS, loops
from nest_ssl.kernels.dropout import drop, unfilled
from nest_ssl.model.encoder.attention import by_pair
from nest_ssl.model.encoder.fused import choice
from nest_ssl.model.encoder.fused.attention import loops_of_pairs
from tests.model.test_fused import encoder, stepped


@pytest.mark.parametrize(("batch", "heads", "frames"), [(1, 1, 1), (2, 3, 5), (3, 2, 33), (2, 4, 101)])
@pytest.mark.parametrize("divisor", [8.0, 3**0.5])
def test_each_loop_is_its_operators(batch: int, heads: int, frames: int, divisor: float) -> None:
    assert loops(PAIRS) is pairs
    torch.manual_seed(frames)
    shape = batch, heads, frames, frames
    scores, distances = torch.randn(shape), torch.randn(*shape[:3], 2 * frames - 1)
    mask, kept = torch.rand(batch, frames, frames) < 0.2, torch.rand(shape) < 0.9
    masked = mask.view(torch.uint8).numpy()
    expected = scores.add(by_pair(distances)).div(divisor).masked_fill(mask.unsqueeze(1), -1e4)
    found = scores.clone()
    pairs.score(found.flatten(0, 1).numpy(), distances.flatten(0, 1).numpy(), masked, divisor, -1e4)
    assert bits(found) == bits(expected)

    found, factor = torch.full(shape, torch.nan), (torch.ones(()) / 0.9).item()
    given = scores.flatten(0, 1).numpy(), kept.flatten(0, 1).view(torch.uint8).numpy()
    pairs.drop(found.flatten(0, 1).numpy(), *given, masked, factor)
    assert bits(found) == bits(drop(scores, kept, 0.1).masked_fill(mask.unsqueeze(1), 0.0))

    expected = scores.masked_fill(mask.unsqueeze(1), 0.0).div(divisor)
    of_distances = torch.zeros_like(distances)
    by_pair(of_distances).copy_(expected)
    found, by_distance = scores.clone(), torch.full_like(distances, torch.nan)
    pairs.unscore(by_distance.flatten(0, 1).numpy(), found.flatten(0, 1).numpy(), masked, divisor)
    assert (bits(found), bits(by_distance)) == (bits(expected), bits(of_distances))


def test_attention_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loops_of_pairs() is pairs  # tried
    calls = Counter[str]()
    for name in ("score", "drop", "unscore"):
        own = getattr(pairs, name)
        monkeypatch.setattr(pairs, name, lambda *given, own=own, name=name: (calls.update([name]), own(*given))[1])
    monkeypatch.setattr(choice, "SMALLEST", 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stepped(encoder(dropout_att=0.1), (60, 37), watched=False, steps=1)
    torch.set_num_threads(threads)
    assert calls == {"score": 2, "drop": 6, "unscore": 2}  # of two layers


@pytest.mark.parametrize("name", ["score", "drop", "unscore"])
def test_those_with_other_bits_are_not_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loops_of_pairs.__wrapped__() is pairs
    own = getattr(pairs, name)
    monkeypatch.setattr(pairs, name, lambda *given: own(*given[:-1], given[-1] * (1 + 1e-6)))
    assert loops_of_pairs.__wrapped__() is None


def test_unfilled_memory_is_as_torchs_own_is() -> None:
    for dtype in (torch.float32, torch.float64):
        made, own = unfilled(torch.empty(0, dtype=dtype), 3, 5, 7), torch.empty(3, 5, 7, dtype=dtype)
        assert (made.shape, made.stride(), made.dtype) == (own.shape, own.stride(), own.dtype)
        assert made.data_ptr() % 64 == own.data_ptr() % 64 == 0


def bits(x: Tensor) -> bytes:
    """Signs of zeros among them."""
    return bytes(x.numpy().tobytes())
