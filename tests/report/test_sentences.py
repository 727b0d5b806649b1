"""The sentences of a report are those that it had before it was rebuilt: `sentences.json` was made by the old code.

A fault of every kind, planted in the miniature. Counts and sizes may be others on another processor, and are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare.comparison import Comparison
from nest_ssl.report.document import plain
from nest_ssl.report.sections.causes import consequence_texts, remainder_text
from nest_ssl.report.sections.headline import title, verdict
from tests.compare.builder import Model, judge
from tests.compare.conftest import make, reference
from tests.compare.test_backward import _Scaled, scale_gradient_of
from tests.compare.test_draws import patch
from tests.compare.test_forward import OtherFlow, ScaledBlock
from tests.compare.test_structure import Swish, WithoutSpare

__all__ = ["make", "reference"]
EXPECTED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("sentences.json").read_text())


def said(comparison: Comparison) -> dict[str, Any]:
    return {
        "title": plain(title(comparison)),
        "verdict": plain(verdict(comparison)),
        "follows": [plain(text) for text in consequence_texts(comparison)],
        "not_explained": [plain(remainder_text(remainder)) for remainder in comparison.unexplained],
    }


def without_numbers(tree: dict[str, Any]) -> dict[str, Any]:
    """Numbers are N, and one of a thing is several of it."""

    def change(text: str) -> str:
        text = re.sub(r"\b\d[\d,.]*(e[-+]\d+)?", "N", text)
        for one, several in (
            ("field", "fields"),
            ("gradient", "gradients"),
            ("value", "values"),
            ("number", "numbers"),
        ):
            text = text.replace(f"N {one} ", f"N {several} ").replace(f"N {one},", f"N {several},")
        return text

    return {
        "title": tree["title"],
        "verdict": change(tree["verdict"]),
        "follows": [change(text) for text in tree["follows"]],
        "not_explained": tree["not_explained"],
    }


def on_gradients(*names: str) -> Callable[[int, nn.Module], None]:
    def change(step: int, model: nn.Module) -> None:
        for name in names:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            gradient *= 1.01

    return change


def on_model(change: Callable[[Any], Any]) -> dict[str, Any]:
    return {"after_build": change}


def nudged(*names: str) -> dict[str, Any]:
    return on_model(lambda model: [model.get_parameter(name).data.view(-1)[:1].add_(1) for name in names])


class Drawing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        torch.rand(1)
        return gradients[0]


def without_bias(model: Any) -> None:
    layer = model.encoder.layers[0].linear2
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)


def two_births(model: Any) -> None:
    tokens, decoder = model.quantizer.forward, model.decoder.forward
    model.quantizer.forward = lambda features: (tokens(features) + 1) % 5
    model.decoder.forward = lambda x: decoder(x) * 1.01


def in_double(model: Any) -> None:
    layer = model.decoder
    layer.forward = lambda x: nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).float()


def last_bias(step: int, model: Any) -> None:
    if step == 1:
        model.decoder.bias.data[0] += 1


def another_batch(step: int, batch: dict[str, Tensor]) -> None:
    batch["audio"] += 1
    batch["audio_len"] += 1


def noisy(step: int, batch: dict[str, Tensor]) -> None:
    batch["audio"] += torch.rand(1)


def scaled(model: Any) -> None:
    block = model.encoder.layers[1]
    block.forward = ScaledBlock.forward.__get__(block)


PLANTED: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "twin": ({}, {}),
    "rewrite": (on_model(in_double), {"atol": 1e-4}),
    "leaf": (on_model(without_bias), {}),
    "own code after": (on_model(lambda model: setattr(model.encoder.layers[1], "factor", 0.5001)), {}),
    "own code between": (on_model(scaled), {}),
    "own forward": ({"model": OtherFlow}, {}),
    "two births": (on_model(two_births), {}),
    "grown": (on_model(lambda model: setattr(model.encoder.layers[0].norm, "eps", 1.01e-5)), {"atol": 4e-6, "rtol": 0}),
    "between backwards": (on_model(scale_gradient_of("encoder.layers.1.linear2")), {"atol": 0.0}),
    "own backward": ({"on_gradients": on_gradients("encoder.layers.1.linear1.bias")}, {"atol": 0.0}),
    "first gradient": ({"on_loss": lambda step, loss: _Scaled.apply(loss)}, {"atol": 0.0}),
    "two gradients": ({"on_gradients": on_gradients("decoder.bias", "encoder.pre_encode.weight")}, {"atol": 0.0}),
    "loss": ({"on_loss": lambda step, loss: loss * 1.001}, {}),
    "two weights": (nudged("encoder.pre_encode.weight", "decoder.weight"), {}),
    "batch": ({"on_batch": another_batch}, {}),
    "learning rate": ({"optimizer": {"lr": 0.02, "weight_decay": 0.1}}, {}),
    "update": ({"after_step": last_bias}, {}),
    "draws more": (on_model(patch("masking", lambda f, x: (torch.rand(3), f(x))[1])), {}),
    "extra draw": (on_model(patch("quantizer", lambda f, x: f(x * (torch.rand(1) * 0 + 1)))), {}),
    "draw after the forward": ({"on_loss": lambda step, loss: torch.rand(1) * 0 + loss}, {}),
    "draw while fetching": ({"on_batch": noisy}, {}),
    "draw while building": (on_model(lambda model: torch.rand(1)), {}),
    "draw in backward": ({"on_loss": lambda step, loss: Drawing.apply(loss)}, {}),
    "module missing": ({"model": WithoutSpare}, {}),
    "another class": (on_model(lambda model: setattr(model.encoder.layers[0].activation, "__class__", Swish)), {}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_said_as_before(reference: Path, make: Callable[..., Path], name: str) -> None:
    plan, rule = PLANTED[name]
    found = without_numbers(said(judge(reference, make(**{"model": Model, **plan}), **rule)))
    assert found == without_numbers(EXPECTED[name])
