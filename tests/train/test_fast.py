"""`numerics: fast`: the same model with other rounding, the same draws and checkpoints, and open where one looks; and
in the exact mode the tokens that count alone, with all bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from nest_ssl.base.determinism import set_determinism
from nest_ssl.base.rng import generator_states
from nest_ssl.config.compose import compose
from nest_ssl.config.schema import BEST_RQ, NEST
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.model import counted_tokens
from nest_ssl.model.ahead import Places
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.nest import NestModel
from nest_ssl.train.fast import FAST_MODULES, FastNestModule, fuse
from nest_ssl.train.module import MODULES, NestModule
from nest_ssl.train.optim import build_optimizer

TARGET = "nemo.collections.asr.models."
OPTIM = {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "sched": {"name": "WarmupPolicy"}}


@pytest.fixture(autouse=True)
def _flags_stay() -> Iterator[None]:
    yield
    set_determinism()
    torch.use_deterministic_algorithms(False)


def built(modules: dict[str, Any], *overrides: str, model: str = NEST, **arguments: Any) -> NestModule:
    cfg = compose(["size=tiny", "run=full", f"model.target={TARGET}{model}", *overrides]).model
    OmegaConf.update(cfg, "train_ds", None)
    OmegaConf.update(cfg, "validation_ds", None)
    torch.manual_seed(0)
    made: NestModule = modules[model](cfg, **arguments)
    return made


def batch_of(module: NestModule) -> Any:
    torch.manual_seed(1)
    audio, lengths = torch.randn(2, 64_000) * 0.1, torch.tensor([64_000, 40_000])
    if not isinstance(module, FAST_MODULES[BEST_RQ] | MODULES[BEST_RQ]):
        noisy = audio + 0.01 * torch.randn_like(audio)
        return AudioNoiseBatch(audio, lengths, noisy - audio, lengths, noisy, lengths)
    return audio, lengths, None, None


def stepped(module: NestModule) -> dict[str, Any]:
    """Loss, gradients and generators of a step in training."""
    batch = batch_of(module)
    torch.manual_seed(2)
    loss = module.train()._loss(batch)
    loss.backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "grads": grads, "generator": generator_states()["torch_cpu"]}


TWO_BOOKS = ("model.num_books=2", "model.masking.mask_prob=0.05")


@pytest.mark.parametrize("model", [NEST, BEST_RQ])
@pytest.mark.parametrize("overrides", [("model.masking.mask_prob=0.05",), TWO_BOOKS])
def test_a_step_is_that_of_the_exact_mode_but_for_rounding(model: str, overrides: tuple[str, ...]) -> None:
    exact = stepped(built(MODULES, *overrides, model=model))
    fast = stepped(built(FAST_MODULES, *overrides, model=model))
    assert exact["loss"].isfinite() and torch.equal(exact["generator"], fast["generator"])
    torch.testing.assert_close(fast["loss"], exact["loss"], rtol=1e-6, atol=0)
    assert fast["grads"].keys() == exact["grads"].keys()
    largest = max(grad.norm() for grad in exact["grads"].values())  # some are rounding alone: of biases before a norm
    for name, grad in exact["grads"].items():
        assert (fast["grads"][name] - grad).norm() <= 1e-5 * grad.norm() + 1e-6 * largest, name


def test_other_tokens_are_another_loss() -> None:
    """The test above sees one token more."""
    exact, fast = built(MODULES, "model.masking.mask_prob=0.05"), built(FAST_MODULES, "model.masking.mask_prob=0.05")
    fast.loss.mlm_loss.mask_threshold = 0.6
    assert abs(stepped(fast)["loss"] - stepped(exact)["loss"]) > 1e-4


@pytest.mark.parametrize("wanted", ["nan", "zero"])
def test_no_masked_token(wanted: str) -> None:
    both = [stepped(built(m, "model.masking.mask_prob=0", no_masked_token=wanted)) for m in (MODULES, FAST_MODULES)]
    for found in both:
        assert found["loss"].isnan() if wanted == "nan" else found["loss"] == 0
        assert all(not grad.any() for grad in found["grads"].values())


def test_who_looks_sees_the_open_way_and_the_exact_bits() -> None:
    exact, fast = built(MODULES, "model.masking.mask_prob=0.05"), built(FAST_MODULES, "model.masking.mask_prob=0.05")
    seen: list[torch.Size] = []
    fast.decoder.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    fast.encoder.pre_encode.conv.register_forward_hook(lambda *_: None)
    one, other = stepped(exact), stepped(fast)
    assert torch.equal(one["loss"], other["loss"]) and len(seen[0]) == 4
    assert all(torch.equal(grad, other["grads"][name]) for name, grad in one["grads"].items())


class Halved(MultiSoftmaxDecoder):
    def forward(self, encoder_output: torch.Tensor) -> torch.Tensor:
        return super().forward(encoder_output) * 0.5


def with_another_decoder(module: Any) -> None:
    module.decoder.__class__ = Halved


def with_a_layer_more(module: Any) -> None:
    module.decoder.decoder_layers.append(nn.LeakyReLU())


def with_an_adapter(module: Any) -> None:
    layers = module.decoder.decoder_layers
    layers[0] = nn.Sequential(layers[0], nn.LeakyReLU())


def with_an_encode_of_its_own(module: Any) -> None:
    own = module.encode
    module.encode = lambda *given, **named: (1.5 * (found := own(*given, **named))[0], *found[1:])


CHANGES = [with_another_decoder, with_a_layer_more, with_an_adapter, with_an_encode_of_its_own]


@pytest.mark.parametrize("modules", [MODULES, FAST_MODULES])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_computes_what_it_was_changed_to(
    modules: dict[str, Any], change: Callable[[Any], None]
) -> None:
    losses = []
    for looked_at in (False, True):
        module = built(modules, "model.masking.mask_prob=0.05")
        change(module)
        if looked_at:
            module.decoder.register_forward_hook(lambda *_: None)
        losses.append(stepped(module)["loss"])
    assert torch.equal(*losses) and losses[0] != stepped(built(modules, "model.masking.mask_prob=0.05"))["loss"]


def test_places_are_those_of_masked_tokens_in_order() -> None:
    counts = torch.rand(3, 40) < 0.3
    assert torch.equal(Places(counts).look(), counts.flatten().nonzero().squeeze(1))


def test_evaluation_is_as_in_training() -> None:
    exact, fast = built(MODULES).eval(), built(FAST_MODULES).eval()
    losses = []
    for module in (exact, fast):
        batch = batch_of(module)
        torch.manual_seed(3)
        with torch.no_grad():
            losses.append(module._loss(batch))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


# --- the exact mode ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each step's way through the decoder."""
    monkeypatch.setattr(counted_tokens, "SMALLEST", 0)
    seen: list[str] = []
    counted, opened = counted_tokens.CountedLogits.apply, torch.log_softmax
    monkeypatch.setattr(
        counted_tokens.CountedLogits, "apply", lambda *given: (seen.append("counted"), counted(*given))[1]
    )
    monkeypatch.setattr(
        torch, "log_softmax", lambda x, dim: (seen.append("open") if x.dim() > 3 else None, opened(x, dim))[1]
    )
    return seen


@pytest.mark.parametrize("model", [NEST, BEST_RQ])
@pytest.mark.parametrize("overrides", [("model.masking.mask_prob=0.05",), TWO_BOOKS])
def test_a_step_of_the_exact_mode_has_the_bits_of_one_that_is_watched(
    model: str, overrides: tuple[str, ...], ways: list[str]
) -> None:
    bare, watched = built(MODULES, *overrides, model=model), built(MODULES, *overrides, model=model)
    watched.loss.register_forward_hook(lambda *_: None)
    one, other = stepped(bare), stepped(watched)
    assert ways == ["counted", "open"]
    assert torch.equal(one["loss"], other["loss"]) and torch.equal(one["generator"], other["generator"])
    assert one["grads"].keys() == other["grads"].keys()
    assert [name for name, grad in one["grads"].items() if not torch.equal(grad, other["grads"][name])] == []


def test_a_forward_of_ones_own_is_taken(ways: list[str]) -> None:
    calls: list[int] = []

    class Own(NestModule):
        def forward(self, **given: Any) -> Any:
            calls.append(1)
            return super().forward(**given)

    stepped(built({NEST: Own}, "model.masking.mask_prob=0.05"))
    assert calls == [1] and ways == ["open"]


@pytest.mark.parametrize("modules", [MODULES, FAST_MODULES])
@pytest.mark.parametrize("name", ["forward", "predict", "signals", "decoder"])
def test_what_was_changed_in_a_class_or_on_an_object_is_called(
    name: str, modules: dict[str, Any], ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for on_an_object in (False, True):
        module, calls = built(modules, "model.masking.mask_prob=0.05"), []
        changed: Any = module.decoder if name == "decoder" else module
        kind = MultiSoftmaxDecoder if name == "decoder" else NestModule if name == "signals" else NestModel
        method = "forward" if name == "decoder" else name
        own = getattr(changed if on_an_object else kind, method)

        def counted(*given: Any, calls: list[int] = calls, own: Any = own, **named: Any) -> Any:
            calls.append(1)
            return own(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(changed if on_an_object else kind, method, counted)
            stepped(module)
        assert calls == [1] and ways == ["open"]
        ways.clear()


@pytest.mark.parametrize("modules", [MODULES, FAST_MODULES])
def test_a_forward_that_a_class_was_given_is_called(
    modules: dict[str, Any], ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it had none of its own."""
    kind, calls = modules[NEST], []

    def counted(self: Any, **given: Any) -> Any:
        calls.append(1)
        return NestModel.forward(self, **given)

    monkeypatch.setattr(kind, "forward", counted)
    stepped(built(modules, "model.masking.mask_prob=0.05"))
    assert calls == [1] and ways == ["open"]


def test_validation_and_batches_without_a_masked_token_are_open(ways: list[str]) -> None:
    with torch.no_grad():
        built(MODULES, "model.masking.mask_prob=0.05")._loss(batch_of(built(MODULES)))
    assert stepped(built(MODULES, "model.masking.mask_prob=0"))["loss"].isnan()
    assert ways == ["open", "open"]


# --- the optimizer ----------------------------------------------------------------------------------------------------


def trained(states: list[Any], fast: list[bool], device: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Any:
    """A small layer after a step for each of `fast`, each with an optimizer of its own that goes on from the last."""
    torch.manual_seed(0)
    layer, before = nn.Linear(5, 3), None
    for is_fast in fast:
        optimizer = build_optimizer(layer, OPTIM)
        if is_fast:
            fuse(optimizer)
        if before is not None:
            optimizer.load_state_dict(before)
        layer(torch.ones(2, 5)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = optimizer.state_dict()
        states.append(before)
    return layer.weight.detach()


def test_a_fused_step_is_the_same_but_for_rounding_and_optimizers_go_on_from_each_other() -> None:
    states: list[Any] = []
    exact = trained(states, [False, False, False])
    for modes in ([True, True, True], [True, False, True], [False, True, False]):
        torch.testing.assert_close(trained(states, modes), exact, rtol=1e-6, atol=1e-7)
    assert {repr(state["param_groups"]) for state in states} == {repr(states[0]["param_groups"])}
    assert states[0]["param_groups"][0]["fused"] is None


def test_an_interrupted_step_leaves_no_trace_in_a_checkpoint() -> None:
    layer = nn.Linear(2, 1)
    optimizer = build_optimizer(layer, OPTIM)
    fuse(optimizer)
    seen: list[Any] = []

    def interrupted() -> float:
        seen.append(optimizer.param_groups[0]["fused"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert seen == [True] and optimizer.state_dict()["param_groups"][0]["fused"] is None
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["fused"] is None


def test_the_kernel_is_the_fused_one_unless_the_settings_name_another(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, seen = nn.Linear(2, 1), []
    original = torch._fused_adamw_
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *args, **named: (seen.append(1), original(*args, **named)))
    for settings in ({}, {"foreach": True}, {"fused": False}):
        optimizer = build_optimizer(layer, {**OPTIM, **settings})
        fuse(optimizer)
        layer(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        seen.append(0)
    assert seen == [1, 0, 0, 0]


def test_modes_have_the_same_names_and_shapes() -> None:
    exact, fast = built(MODULES), built(FAST_MODULES)
    shapes = [{name: value.shape for name, value in module.state_dict().items()} for module in (exact, fast)]
    assert shapes[0] == shapes[1] and isinstance(fast, FastNestModule)
    fast.load_state_dict(exact.state_dict())
