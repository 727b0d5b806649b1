"""The loop of a depthwise convolution's gradients has oneDNN's bits, or is not taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nest_ssl.kernels import depthwise
from nest_ssl.model.encoder.fused import choice, convolution
from tests.model.test_fused import SIZES, differing, encoder, stepped


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    convolution._loop_has_its_sums.cache_clear()
    yield
    torch.set_num_threads(threads)
    convolution._loop_has_its_sums.cache_clear()


@pytest.mark.parametrize("lengths", [(200, 170), (151,), (404, 403, 380, 9)])
@pytest.mark.parametrize("use_bias", [True, False])
def test_a_layer_that_takes_it_has_the_bits_of_an_open_one(
    lengths: tuple[int, ...], use_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "SMALLEST", 0)
    sizes, own = list[tuple[int, ...]](), depthwise.gradients
    monkeypatch.setattr(depthwise, "gradients", lambda *given: (sizes.append(given[2].shape), own(*given))[1])
    both = [stepped(encoder(d_model=64, use_bias=use_bias), lengths, watched) for watched in (True, False)]
    assert differing(*both) == []
    steps = -(-max(lengths) // SIZES["subsampling_factor"])
    known = use_bias and convolution._loop_has_its_sums(
        len(lengths), 64, steps + SIZES["conv_kernel_size"] - 1, SIZES["conv_kernel_size"]
    )
    assert (len(sizes) > 2) is known  # not by a trial alone


def test_usual_lengths_are_looped_where_sums_are_known() -> None:
    """Which of them is a matter of the processor; if none were, the loop would be there for nothing."""
    known = [convolution._loop_has_its_sums(batch, 512, steps + 8, 9) for batch, steps in ((2, 38), (8, 101), (8, 202))]
    assert any(known) or not torch.cpu._is_avx512_supported()


def test_other_sums_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    own = depthwise.gradients

    def planted(*given: object) -> None:
        own(*given)
        given[0][-1, -1] *= 1.0000002  # type: ignore[index]

    monkeypatch.setattr(depthwise, "gradients", planted)
    assert not convolution._loop_has_its_sums(2, 64, 48, 9)


def test_more_threads_or_other_kernels_have_their_own() -> None:
    x, weight, bias = torch.randn(2, 64, 48), torch.randn(64, 1, 9), torch.randn(64)
    known = convolution.may_loop_over_time(x, weight, bias)
    torch._C._set_mkldnn_enabled(False)
    try:
        assert not convolution.may_loop_over_time(x, weight, bias)
    finally:
        torch._C._set_mkldnn_enabled(True)
    torch.set_num_threads(2)
    assert not convolution.may_loop_over_time(x, weight, bias)
    torch.set_num_threads(1)
    assert convolution.may_loop_over_time(x, weight, bias) is known
