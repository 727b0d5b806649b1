"""The fused way through a Conformer layer has every bit of the open one, and steps aside for whoever looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.base.nested import leaves
from nest_ssl.config.parts import Encoder
from nest_ssl.config.section import read
from nest_ssl.kernels import dropout
from nest_ssl.kernels.dropout import Dropout
from nest_ssl.model.encoder import layer as layer_module
from nest_ssl.model.encoder.attention import AttentionHeads, RelPositionMultiHeadAttention
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.encoder.fused import choice
from nest_ssl.model.encoder.fused.choice import is_fusable, is_watched
from nest_ssl.model.encoder.layer import CausalConv1D, ConformerConvolution, ConformerFeedForward
from nest_ssl.record.observers.calls import CallObserver

SIZES = {
    "feat_in": 16,
    "n_layers": 2,
    "d_model": 24,  # of 2 heads: a scale that is no power of two
    "n_heads": 2,
    "subsampling": "dw_striding",
    "subsampling_factor": 4,
    "conv_kernel_size": 5,
}


def encoder(dtype: torch.dtype = torch.float32, **options: Any) -> ConformerEncoder:
    torch.manual_seed(0)
    made = ConformerEncoder(read(Encoder, {**SIZES, **options})).to(dtype)
    for name, parameter in made.named_parameters():
        if "pos_bias" in name:
            nn.init.normal_(parameter)
    return made


def look(*_: object) -> None:
    """A hook that changes nothing."""


def stepped(module: ConformerEncoder, lengths: tuple[int, ...], watched: bool, steps: int = 2) -> dict[str, Any]:
    """All that training leaves: outputs, gradients, weights, buffers, generators."""
    handles = [each.register_forward_hook(look) for each in module.modules() if watched]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    torch.manual_seed(1)
    found: dict[str, Any] = {}
    for step in range(steps):
        x = torch.randn(len(lengths), SIZES["feat_in"], max(lengths)).to(next(module.parameters()).dtype)
        x.requires_grad_()
        encoded, _ = module(audio_signal=x, length=torch.tensor(lengths))
        optimizer.zero_grad()
        (encoded * torch.randn_like(encoded)).sum().backward()
        found |= {f"{step} output": encoded.detach(), f"{step} input's gradient": x.grad}
        found |= {f"{step} gradient of {name}": p.grad for name, p in module.named_parameters()}
        optimizer.step()
    found |= {name: value.clone() for name, value in module.state_dict().items()}
    for handle in handles:
        handle.remove()
    return {**found, "generator": torch.get_rng_state()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    def bits(value: Any) -> Any:
        return value.detach().contiguous().numpy().tobytes() if isinstance(value, Tensor) else value

    assert one.keys() == other.keys()
    return [name for name in one if bits(one[name]) != bits(other[name])]


@pytest.fixture(autouse=True)
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of these tests' size are fused too."""
    monkeypatch.setattr(choice, "SMALLEST", 0)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each layer's call took the fused way."""
    ways: list[bool] = []

    def noted(*arguments: Any) -> bool:
        ways.append(is_fusable(*arguments))
        return ways[-1]

    monkeypatch.setattr(layer_module, "is_fusable", noted)
    return ways


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "padded": ({}, (60, 37, 9)),
    "whole": ({}, (60, 60)),
    "one utterance": ({}, (41,)),
    "no dropout": ({"dropout": 0.0, "dropout_att": 0.0}, (60, 37)),
    "no biases": ({"use_bias": False}, (60, 37)),
    "shared position biases": ({"untie_biases": False}, (60, 37)),
    "causal": ({"conv_context_size": "causal"}, (60, 37)),
    "dropped positions": ({"dropout_emb": 0.1}, (60, 37)),
    "a power of two": ({"d_model": 32}, (300, 260)),
    "one head": ({"n_heads": 1, "d_model": 4}, (1600, 1200, 1600)),
}


@pytest.mark.parametrize("case", CASES)
def test_both_ways_give_the_same_bits(case: str, taken: list[bool]) -> None:
    options, lengths = CASES[case]
    opened = stepped(encoder(**options), lengths, watched=True)
    assert set(taken) == {False}
    taken.clear()
    fused = stepped(encoder(**options), lengths, watched=False)
    assert set(taken) == {True}
    assert differing(opened, fused) == []


@pytest.mark.parametrize("mode", ["linear", "uniform"])
def test_layers_that_are_left_out_at_times_are_open(mode: str, taken: list[bool]) -> None:
    """Fused, the gradient of a layer's input is one, and added to that from behind the layer otherwise."""
    depth = {"stochastic_depth_drop_prob": 0.3, "stochastic_depth_mode": mode, "n_layers": 4}
    both = [stepped(encoder(**depth), (60, 37), watched) for watched in (True, False)]
    assert set(taken) == {False} and differing(*both) == []


@pytest.mark.parametrize(("options", "lengths"), [({}, (60, 37)), ({"n_heads": 1, "d_model": 96}, (800, 800, 700))])
def test_in_float64_too(options: dict[str, Any], lengths: tuple[int, ...]) -> None:
    both = [stepped(encoder(torch.float64, **options), lengths, watched) for watched in (True, False)]
    assert differing(*both) == []


def test_with_several_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = [stepped(encoder(d_model=64), (200, 170), watched, steps=1) for watched in (True, False)]
    finally:
        torch.set_num_threads(before)
    assert differing(*both) == []


def test_a_fault_in_the_fused_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor some ulps off."""
    drop_ = dropout.drop_

    def planted(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
        return drop_(x, kept, rate + 1e-6)

    opened = stepped(encoder(), (60, 37), watched=True)
    monkeypatch.setattr("nest_ssl.model.encoder.fused.feed_forward.drop_", planted)
    assert "0 output" in differing(opened, stepped(encoder(), (60, 37), watched=False))


def hooked(module: nn.Module) -> object:
    return module.register_forward_hook(look)


def hooked_backward(module: nn.Module) -> object:
    return module.register_full_backward_hook(look)


def replaced(module: nn.Module) -> None:
    own = module.forward
    module.forward = lambda *given: own(*given)  # type: ignore[method-assign]


def compiled(module: nn.Module) -> None:
    module.compile(backend="eager")


@pytest.mark.parametrize("looking", [hooked, hooked_backward, replaced, compiled])
def test_who_looks_at_one_module_opens_its_layer(looking: Callable[[nn.Module], object], taken: list[bool]) -> None:
    module = encoder()
    looking(module.layers[1].conv.batch_norm)
    stepped(module, (60, 37), watched=False, steps=1)
    assert taken == [True, False]


class Adapted(nn.Linear):
    """As an adapter is put in place of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5


def with_an_adapter(layer: nn.Module) -> None:
    linear = layer.feed_forward2.linear1
    layer.feed_forward2.linear1 = Adapted(linear.in_features, linear.out_features)


def with_gelu(layer: nn.Module) -> None:
    layer.feed_forward1.activation = nn.GELU()


class Louder(layer_module.CausalConv1D):
    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        return super().forward(x, cache) * 1.5


def with_another_convolution(layer: nn.Module) -> None:
    own = layer.conv.depthwise_conv
    layer.conv.depthwise_conv = Louder(own.in_channels, own.kernel_size[0], own.context, own.bias is not None)


def with_an_average_of_all(layer: nn.Module) -> None:
    layer.conv.batch_norm.momentum = None


def without_weights_of_a_norm(layer: nn.Module) -> None:
    layer.norm_conv = nn.LayerNorm(SIZES["d_model"], elementwise_affine=False)


def with_a_bias_of_distances(layer: nn.Module) -> None:
    layer.self_attn.linear_pos.bias = nn.Parameter(torch.randn(SIZES["d_model"]))


def with_a_wider_convolution(layer: nn.Module) -> None:
    layer.conv.depthwise_conv.dilation = (2,)
    layer.conv.depthwise_conv.context = (4, 4)


def with_three_frames_for_one(layer: nn.Module) -> None:
    layer.conv.pointwise_conv2 = nn.Conv1d(SIZES["d_model"], SIZES["d_model"], kernel_size=3, padding=1)


def without_averages(layer: nn.Module) -> None:
    layer.conv.batch_norm.track_running_stats = False


def with_dropout_in_place(layer: nn.Module) -> None:
    layer.dropout.inplace = True


CHANGES: list[Callable[[nn.Module], None]] = [
    with_an_adapter, with_gelu, with_another_convolution, with_an_average_of_all, without_weights_of_a_norm,
    with_a_bias_of_distances, with_a_wider_convolution, with_three_frames_for_one, without_averages,
    with_dropout_in_place,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_was_changed_is_open(change: Callable[[nn.Module], None], taken: list[bool]) -> None:
    """What was changed would be left out without a word otherwise."""
    both = []
    for watched in (True, False):
        module = encoder()
        torch.manual_seed(2)
        change(module.layers[1])
        both.append(stepped(module, (60, 37), watched, steps=1))
    assert taken == [False, False, True, False] and differing(*both) == []


CHANGED: list[tuple[type[nn.Module], str]] = [
    (ConformerFeedForward, "forward"), (ConformerConvolution, "forward"), (ConformerConvolution, "normalise"),
    (CausalConv1D, "forward"), (RelPositionMultiHeadAttention, "forward"), (RelPositionMultiHeadAttention, "attend"),
    (AttentionHeads, "_joined"), (Dropout, "forward"), (nn.Dropout, "forward"), (nn.Linear, "forward"),
    (nn.Conv1d, "forward"), (nn.Conv1d, "_conv_forward"), (nn.LayerNorm, "forward"), (nn.SiLU, "forward"),
    (type(nn.BatchNorm1d(1)).__mro__[1], "forward"), (nn.Module, "__call__"), (nn.Linear, "__call__"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), CHANGED)
def test_a_method_that_was_changed_in_its_class_is_called(
    kind: type[nn.Module], name: str, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as where a hook opens every layer."""
    module, calls, own = encoder(), [], getattr(kind, name)

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return own(*given, **named)

    found = []
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, counted)
        for watched in (True, False):
            found.append((stepped(encoder(), (60, 37), watched, steps=1), len(calls)))
            calls.clear()
    assert taken == [False] * 4 and found[0][1] == found[1][1] > 0
    assert differing(found[0][0], found[1][0]) == []
    stepped(module, (60, 37), watched=False, steps=1)
    assert taken[4:] == [True, True]


def test_a_method_of_one_object_opens_its_layer(taken: list[bool]) -> None:
    module = encoder()
    attention: Any = module.layers[1].self_attn
    own, calls = attention.attend, []
    attention.attend = lambda *given: (calls.append(1), own(*given))[1]
    stepped(module, (60, 37), watched=False, steps=1)
    assert taken == [True, False] and calls == [1]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ReLU])
def test_convolutions_that_were_changed_in_their_class_are_called(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, calls, own = encoder(), [], kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: (calls.append(1), own(self, x))[1])
    stepped(module, (60, 37), watched=False, steps=1)
    assert len(calls) == sum(isinstance(layer, kind) for layer in module.pre_encode.conv)


@pytest.mark.parametrize("rate", ["dropout", "dropout_att"])
def test_dropout_of_all_is_open(rate: str, taken: list[bool]) -> None:
    """Torch draws nothing then, and multiplies by zero: not by a zero and what one is divided by zero."""
    both = [stepped(encoder(**{rate: 1.0}), (60, 37), watched) for watched in (True, False)]
    assert set(taken) == {False} and differing(*both) == [] and both[0]["0 output"].isfinite().all()


def test_weights_with_gaps_between_are_open(taken: list[bool]) -> None:
    """Their gradients are added up in another order than in one product."""
    both = []
    for watched in (True, False):
        module = encoder()
        for parameter in module.layers[1].parameters():
            apart = torch.zeros(*parameter.shape, 2)
            apart[..., 0] = parameter.detach()
            parameter.data = apart[..., 0]
        both.append(stepped(module, (60, 37), watched))
    assert taken[4:] == [True, False] * 2 and differing(*both) == []


def test_a_hook_on_all_modules_opens_all() -> None:
    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        assert is_watched(encoder())
    finally:
        handle.remove()
    assert not is_watched(encoder())


def test_a_forward_of_its_own_is_nobodys() -> None:
    """Lightning, under ddp, leaves it behind on the module."""
    module = encoder()
    module.forward = module.forward  # type: ignore[method-assign]
    assert "forward" in vars(module) and not is_watched(module)


def test_who_looks_at_layers_alone_sees_the_same_and_opens_none(taken: list[bool]) -> None:
    def seen(inside: bool) -> tuple[dict[str, Any], list[Any]]:
        module = encoder()
        names = None if inside else {"layers.0", "layers.1"}
        observer = CallObserver(module, modules=names).attach()
        found = stepped(module, (60, 37), watched=False, steps=1)
        calls = [call.as_builtins() for call in observer.detach() if re.fullmatch(r"layers\.\d", call.module)]
        return found, [{key: call[key] for key in ("module", "kwargs", "output", "output_grads")} for call in calls]

    (opened, all_of_it), (fused, boundaries) = seen(inside=True), seen(inside=False)
    assert taken == [False, False, True, True]
    assert differing(opened, fused) == [] and len(boundaries) == 2
    assert differing(*(dict(leaves(calls)) for calls in (all_of_it, boundaries))) == []


def test_a_recorder_opens_all_and_closes_them_again() -> None:
    module = encoder()
    observer = CallObserver(module).attach()
    assert all(map(is_watched, module.layers))
    observer.detach()
    assert not any(map(is_watched, module.layers))


def test_small_layers_are_open(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "SMALLEST", 15 * 24 + 1)  # 60 frames are 15 behind subsampling, of width 24
    stepped(encoder(), (60,), watched=False, steps=1)
    stepped(encoder(), (64,), watched=False, steps=1)
    assert taken == [False, False, True, True]


def test_evaluation_and_frozen_weights_are_open(taken: list[bool]) -> None:
    x, length = torch.randn(2, 16, 60), torch.tensor([60, 37])
    encoder().eval()(audio_signal=x, length=length)
    frozen = encoder()
    frozen.layers[0].conv.pointwise_conv2.bias.requires_grad_(False)
    frozen(audio_signal=x, length=length)
    with torch.no_grad():
        encoder()(audio_signal=x, length=length)
    with torch.autocast("cpu", torch.bfloat16):
        encoder()(audio_signal=x, length=length)
    assert taken == [False, False, False, True, False, False, False, False]


def test_a_function_by_the_name_of_another_modules_method_opens_the_way() -> None:
    module = nn.Linear(1, 1)
    module.attend = lambda x: x  # type: ignore[assignment]
    assert is_watched(module)
