"""A gradient that is differentiated again comes from the open model, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.encoder.fused import choice
from tests.model.test_fused import encoder, look


def second(module: ConformerEncoder) -> list[Tensor]:
    """Gradients of the sum of the gradients' squares."""
    weights = list(module.parameters())
    encoded, _ = module(audio_signal=torch.randn(2, 16, 60, dtype=torch.float64), length=torch.tensor([60, 37]))
    first = torch.autograd.grad(encoded.pow(2).sum(), weights, create_graph=True)
    return [each for each in torch.autograd.grad(sum(each.pow(2).sum() for each in first), weights, allow_unused=True)
            if each is not None]  # fmt: skip


@pytest.mark.parametrize("smallest", [0, 1 << 30])
def test_what_writes_over_gradients_says_so_and_a_hook_opens_it(smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In layers, and in subsampling alone."""
    monkeypatch.setattr(choice, "SMALLEST", smallest)
    module = encoder(torch.float64, dropout=0.0, dropout_att=0.0)
    with pytest.raises(RuntimeError, match="put a hook on the modules"):
        second(module)
    for each in module.modules():
        each.register_forward_hook(look)
    assert all(each.isfinite().all() for each in second(module))
