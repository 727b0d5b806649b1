"""A fused layer is one of as many positions as its frames have, of which none is learned."""

from __future__ import annotations

import pytest
import torch

from nest_ssl.model.encoder import layer as layer_module
from nest_ssl.model.encoder.fused import choice
from nest_ssl.model.encoder.fused.choice import is_fusable
from tests.model.test_fused import differing, encoder, look


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The answer to each question whether a layer may be fused."""
    answers = list[bool]()
    monkeypatch.setattr(choice, "SMALLEST", 0)
    monkeypatch.setattr(layer_module, "is_fusable", lambda *given: (answers.append(is_fusable(*given)), answers[-1])[1])
    return answers


@pytest.mark.parametrize("positions", [20, 60, 79, 100])
def test_a_layer_of_other_positions_than_its_frames_have_is_open(positions: int, asked: list[bool]) -> None:
    """Of too few nothing is read behind their memory: the open way refuses or computes."""
    found = []
    for watched in (True, False):
        layer, generator = encoder().layers[0], torch.Generator().manual_seed(3)
        if watched:
            layer.conv.register_forward_hook(look)
        x, pos = (torch.randn(size, generator=generator) for size in ((2, 40, 24), (1, positions, 24)))
        torch.manual_seed(1)
        try:
            layer(x.requires_grad_(), pos_emb=pos).square().sum().backward()
        except (RuntimeError, TypeError) as error:
            found.append({"error": type(error)})
        else:
            found.append({"x": x.grad, **{name: each.grad for name, each in layer.named_parameters()}})
    assert asked == ([False, True] if positions == 79 else [])
    assert differing(*found) == [] and ("error" in found[0]) is (positions == 20)


def test_positions_that_are_learned_have_their_gradient(asked: list[bool]) -> None:
    layer, pos = encoder().layers[0], torch.randn(1, 79, 24, requires_grad=True)
    layer(torch.randn(2, 40, 24, requires_grad=True), pos_emb=pos).sum().backward()
    assert asked == [] and pos.grad is not None
