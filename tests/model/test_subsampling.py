from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Encoder
from nest_ssl.config.section import read
from nest_ssl.model.encoder import subsampling
from nest_ssl.model.encoder.fused import subsampling as fused
from nest_ssl.model.encoder.fused.subsampling import ByChannels, Depthwise, may_go_by_channels
from nest_ssl.model.encoder.kinds import UNMASKED, subsampling_of
from nest_ssl.model.encoder.subsampling import ConvSubsampling
from nest_ssl.releases import GENERATIONS, Generation


def make(
    kind: str = "dw_striding", factor: int = 8, differences: Generation = GENERATIONS["3.0"], **options: Any
) -> ConvSubsampling:
    torch.manual_seed(0)
    return ConvSubsampling(settings(kind, factor, **options), differences)


def settings(kind: str, factor: int = 8, **options: Any) -> Encoder:
    given = {"subsampling": kind, "subsampling_factor": factor, "feat_in": 80, "n_layers": 1, "d_model": 32}
    return read(Encoder, {**given, "subsampling_conv_channels": 16, **options})


@pytest.mark.parametrize("kind", ["dw_striding", "striding"])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shape_and_lengths(kind: str, factor: int) -> None:
    x, lengths = make(kind, factor)(torch.randn(3, 304, 80), torch.tensor([300, 9, 1]))
    assert x.shape == (3, 304 // factor, 32)
    assert lengths.tolist() == [-(-n // factor) for n in (300, 9, 1)]


def test_layers_are_numbered_as_in_nemo_and_share_one_activation() -> None:
    conv = make().conv
    stage = ["Conv2d", "Conv2d", "ReLU"]
    assert [type(layer).__name__ for layer in conv] == ["Conv2d", "ReLU", *stage, *stage]
    assert conv[1] is conv[4] is conv[7]
    assert conv[1].inplace
    assert conv[2].groups == 16


def test_padding_changes_nothing_within_the_utterance() -> None:
    module, x = make(), torch.randn(1, 100, 80)
    noisy = torch.cat([x, torch.randn(1, 60, 80)], dim=1)
    alone, length = module(x, torch.tensor([100]))
    padded, same_length = module(noisy, torch.tensor([100]))
    assert length == same_length == 13
    torch.testing.assert_close(padded[:, :13], alone, atol=1e-6, rtol=0)


def test_a_split_batch_gives_what_the_whole_does() -> None:
    x, lengths = torch.randn(5, 64, 80), torch.tensor([64, 60, 40, 9, 1])
    whole, split = make()(x, lengths), make(subsampling_conv_chunking_factor=2)(x, lengths)
    torch.testing.assert_close(split, whole)


def test_too_large_a_batch_is_split_and_too_long_an_utterance_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsampling, "MAX_ELEMENTS", 64 * 80 * 16 // 4)  # one utterance of 64 frames
    module, calls = make(), []
    module.conv.register_forward_hook(lambda *_: calls.append(1))
    module(torch.randn(4, 64, 80), torch.full((4,), 64))
    assert len(calls) == 4
    with pytest.raises(UserError, match="cannot be split"):
        module(torch.randn(1, 128, 80), torch.tensor([128]))


def test_the_linear_layer_fits_the_features_that_are_left() -> None:
    assert make(factor=8).out.in_features == 16 * 10
    assert isinstance(make(factor=4).out, nn.Linear)


@pytest.mark.parametrize("options", [{"factor": 6}, {"factor": 12}, {"subsampling_conv_chunking_factor": -2}])
def test_factors_are_powers_of_two(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="power of two"):
        make(**options)


@pytest.mark.parametrize("kind", ["dw_striding", "striding"])
@pytest.mark.parametrize("chunking", [1, 2])
def test_plain_convolutions_see_padding_and_count_the_same_lengths(kind: str, chunking: int) -> None:
    """As before NeMo 2.5."""
    options = {"subsampling_conv_chunking_factor": chunking}
    masked = make(kind, **options)
    plain = make(kind, differences=GENERATIONS["2.4"], **options)
    assert type(plain.conv) is nn.Sequential
    x, lengths = torch.randn(4, 160, 80), torch.tensor([160, 100, 1, 0])
    (seen, seen_lengths), (hidden, hidden_lengths) = plain(x, lengths), masked(x, lengths)
    assert torch.equal(seen[0], hidden[0]) and not torch.equal(seen[1], hidden[1])
    assert (seen_lengths.dtype, hidden_lengths.dtype) == (torch.int32, torch.int64)
    assert seen_lengths.tolist() == hidden_lengths.tolist() == [20, 13, 1, 0]


@pytest.mark.parametrize(("kind", "parts"), [*((kind, 1) for kind in UNMASKED), ("striding", -1)])
def test_what_nemo_trains_before_it_masks(kind: str, parts: int) -> None:
    given = settings(kind, subsampling_conv_chunking_factor=parts)
    out, lengths = subsampling_of(given, GENERATIONS["2.4"])(torch.randn(2, 160, 80), torch.tensor([160, 93]))
    assert out.shape == (2, 20, 32) and lengths.tolist() == [20, 12]
    with pytest.raises(UserError, match=r"NeMo since 2\.5 stops at it, too"):
        subsampling_of(given, GENERATIONS["2.7"])


@pytest.mark.parametrize("kind", ["dw_striding", "striding"])
@pytest.mark.parametrize("lengths", [(160, 93, 8, 0), (160, 160, 160, 160)])
def test_in_place_it_has_the_bits_of_the_open_way_and_leaves_a_gradient_as_it_is(
    kind: str, lengths: tuple[int, ...]
) -> None:
    found = []
    for watched in (False, True):
        module = make(kind).conv
        handles = [module[1].register_forward_hook(lambda *_: None)] if watched else []
        torch.manual_seed(1)
        x = torch.randn(4, 160, 80, requires_grad=True)
        out, _ = module(x, torch.tensor(lengths))
        given = torch.randn_like(out)
        before = given.clone()
        out.backward(given)
        assert torch.equal(given, before)
        tensors = [out.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]
        found.append([tensor.contiguous().numpy().tobytes() for tensor in tensors if tensor is not None])
        assert bool(module[1]._forward_hooks) == bool(handles)
    assert len(found[0]) == 2 + len(list(module.parameters())) and found[0] == found[1]


@pytest.mark.parametrize("lengths", [(160, 93, 8, 0), (160, 160, 160, 160)])
def test_channel_by_channel_it_has_the_bits_of_the_open_way(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing asks for a gradient of the features, on one thread alone, and not for few features."""
    calls: list[int] = []
    apply = ByChannels.apply
    monkeypatch.setattr(ByChannels, "apply", lambda *arguments: calls.append(1) or apply(*arguments))
    threads = torch.get_num_threads()
    found = []
    try:
        for number, watched, few in ((1, False, False), (1, True, False), (2, False, False), (1, False, True)):
            monkeypatch.setattr(fused, "FEWEST", 4 * 160 * 80 + few)
            torch.set_num_threads(number)
            module = make(subsampling_conv_channels=48).conv
            torch.manual_seed(1)
            if watched:
                module[1].register_forward_hook(lambda *_: None)
            out, _ = module(torch.randn(4, 160, 80), torch.tensor(lengths))
            out.backward(torch.randn_like(out))
            tensors = [out.detach(), *(parameter.grad for parameter in module.parameters())]
            found.append([tensor.contiguous().numpy().tobytes() for tensor in tensors if tensor is not None])
    finally:
        torch.set_num_threads(threads)
    assert calls == [1, 1] and len(found[0]) == 1 + len(list(module.parameters())) and found[0] == found[1] == found[3]


def test_features_with_time_innermost_are_laid_out_once_for_all_channels() -> None:
    threads, convs = torch.get_num_threads(), make(subsampling_conv_channels=48).conv
    torch.set_num_threads(1)
    try:
        weights = [parameter for conv in (convs[0], convs[2]) for parameter in (conv.weight, conv.bias)]
        found = []
        for x in (torch.randn(2, 1, 80, 160).transpose(2, 3), torch.randn(2, 1, 160, 80)):
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                ByChannels.apply(x, [80, 60], ((2, 2), (1, 1)), *weights).sum().backward()
            found.append([event.name for event in seen.events() or ()].count("aten::clone"))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] + 1


@pytest.mark.parametrize(
    "change", ["frozen", "few channels", "float64", "features", "dilated", "padded", "channels last"]
)
def test_what_is_not_the_same_channel_by_channel_is_not_computed_so(change: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layers, x = (
            make(subsampling_conv_channels=24 if change == "few channels" else 48).conv,
            torch.zeros(1, 1, 16, 80),
        )
        assert may_go_by_channels(layers, x) is (change != "few channels")
        layers[2].bias.requires_grad_(change != "frozen")
        layers[2].dilation = (2, 2) if change == "dilated" else (1, 1)
        layers[2].padding = (0, 0) if change == "padded" else layers[0].padding
        layers.to(memory_format=torch.channels_last if change == "channels last" else torch.contiguous_format)  # type: ignore[call-overload]
        x = x.requires_grad_(change == "features").to(torch.float64 if change == "float64" else torch.float32)
        assert not may_go_by_channels(layers, x)
    finally:
        torch.set_num_threads(threads)


def test_depthwise_gradients_are_float32s_where_all_else_is_bfloat16() -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 6, 3, 2, 1, groups=6), torch.randn(3, 6, 20, 10).bfloat16()
    d = torch.randn(3, 6, 10, 5).bfloat16()
    found, expected = (x.clone().requires_grad_(), x.float().requires_grad_())
    out = Depthwise.apply(found, layer.weight, layer.bias, layer.stride, layer.padding)
    out.backward(d)
    grads = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    wide = layer(expected)
    wide.backward(d.float())
    torch.testing.assert_close(out, wide.bfloat16(), atol=0.01, rtol=0.01)
    assert found.grad is not None and expected.grad is not None
    assert torch.equal(found.grad, expected.grad.bfloat16())
    for grad, parameter in zip(grads, layer.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, atol=1e-5, rtol=1e-5)
