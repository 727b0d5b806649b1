"""Products in place of a fused layer's pointwise convolutions have their bits, or are not taken."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nest_ssl.model.encoder.fused import choice, convolution
from nest_ssl.model.encoder.fused import layer as fused_layer
from tests.model.test_fused import SIZES, differing, encoder, stepped


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """On one thread: whether products stood in for each pointwise convolution, those of a trial not among them."""
    monkeypatch.setattr(choice, "SMALLEST", 0)
    ways, own, before = list[bool](), convolution._pointwise_backward, torch.get_num_threads()
    monkeypatch.setattr(convolution, "_pointwise_backward", lambda *given: (ways.append(given[-1]), own(*given))[1])
    tried = convolution._products_have_its_sums

    @lru_cache
    def trial(*shape: int) -> bool:
        known = len(ways)
        found = tried.__wrapped__(*shape)
        del ways[known:]
        return found

    monkeypatch.setattr(convolution, "_products_have_its_sums", trial)
    tried.cache_clear()
    torch.set_num_threads(1)
    yield ways
    torch.set_num_threads(before)
    tried.cache_clear()


def alike(width: int, steps: int) -> bool:
    """Whether both pointwise convolutions of a layer are products on this processor."""
    return all(convolution._products_have_its_sums(times * width, width, steps) for times in (2, 1))


@pytest.mark.parametrize("lengths", [(200, 170), (151,), (404, 403, 380, 9)])
@pytest.mark.parametrize("options", [{"d_model": 64}, {"d_model": 64, "use_bias": False}, {"d_model": 48}])
def test_products_in_place_of_convolutions_have_their_bits(
    lengths: tuple[int, ...], options: dict[str, Any], multiplied: list[bool]
) -> None:
    both = [stepped(encoder(**options), lengths, watched) for watched in (True, False)]
    steps = -(-max(lengths) // SIZES["subsampling_factor"])
    assert differing(*both) == [] and set(multiplied) == {alike(options["d_model"], steps)}


def test_usual_lengths_are_multiplied_where_products_are_of_mkl(multiplied: list[bool]) -> None:
    """Which of them is a matter of the processor; if none were, products would be there for nothing."""
    usual = [alike(512, steps) for steps in (38, 101, 201)]
    assert any(usual) or not torch.backends.mkl.is_available()


def test_a_trial_is_of_float32_and_precisions_of_products_are_asked_each_time(multiplied: list[bool]) -> None:
    known, default = alike(64, 40), torch.get_default_dtype()
    precision, weight = torch.get_float32_matmul_precision(), torch.randn(128, 64, 1)
    convolution._products_have_its_sums.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        assert alike(64, 40) is known
        torch.set_float32_matmul_precision("highest")
        assert convolution.may_multiply(torch.randn(2, 64, 40).float(), weight) is known
        torch.set_float32_matmul_precision("medium")
        assert not convolution.may_multiply(torch.randn(2, 64, 40).float(), weight)
    finally:
        torch.set_default_dtype(default)
        torch.set_float32_matmul_precision(precision)


def test_products_with_other_sums_are_seen(multiplied: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    addmm = torch.addmm

    def planted(bias: Tensor, weight: Tensor, x: Tensor, out: Tensor) -> Tensor:
        return addmm(bias, weight.flip(1), x.flip(0), out=out)

    monkeypatch.setattr(convolution.torch, "addmm", planted)
    assert not convolution._products_have_its_sums(128, 64, 40)


def test_where_backward_has_more_threads_it_is_the_convolutions(multiplied: list[bool]) -> None:
    """Kernels are chosen by the number of threads."""
    x = torch.randn(2, 40, 64, requires_grad=True)
    layer = encoder(d_model=64).layers[0]
    mask = torch.zeros(2, 40, dtype=torch.bool)
    products = alike(64, 40)
    for threads in (1, 2):
        torch.set_num_threads(1)
        out = fused_layer._convolution(x, layer.norm_conv, layer.conv, 0.1, mask)
        torch.set_num_threads(threads)
        out.sum().backward()
    assert multiplied == [products, products, False, False]


def test_asking_whether_products_may_stand_in_copies_nothing(multiplied: list[bool]) -> None:
    x_BDT, weight = convolution._turned(torch.randn(2, 64, 40)), torch.randn(128, 64, 1)
    known = convolution.may_multiply(x_BDT, weight)  # tried, so that it is known for this shape
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        assert convolution.may_multiply(x_BDT, weight) is known
        convolution._turned(x_BDT.transpose(1, 2))
    assert [event.name for event in seen.events() or ()].count("aten::clone") == 1  # that of the last line


def test_a_default_device_changes_nothing_in_a_fused_layer(multiplied: list[bool]) -> None:
    found = []
    for device in ("cpu", "meta"):
        layer, mask = encoder(d_model=64).layers[0], torch.zeros(2, 40, 40, dtype=torch.bool)
        x, pos, pad = torch.randn(2, 40, 64, requires_grad=True), torch.randn(1, 79, 64), mask[:, 0]
        convolution._products_have_its_sums.cache_clear()
        with torch.device(device):
            assert choice.is_fusable(layer, x)
            out = fused_layer.fused_layer(layer, x, mask, pos, pad)
            out.square().sum().backward()
        found.append([out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True)) and multiplied
