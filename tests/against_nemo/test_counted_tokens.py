"""The loss of the tokens that count, as the port computes it where no hook looks; NeMo's decoder and loss of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.model import counted_tokens
from nest_ssl.model.counted_tokens import loss_of_counted


def of_all(decoder: nn.Module, loss: nn.Module, encoded: Tensor, tokens: Tensor, masks: Tensor) -> Tensor:
    value: Tensor = loss(masks=masks, decoder_outputs=decoder(encoder_output=encoded), targets=tokens)
    return value


def stepped(compute: Callable[..., Tensor], model: nn.Module, encoded: Tensor, *batch: Tensor) -> dict[str, Any]:
    """Loss and gradients."""
    encoded = encoded.detach().requires_grad_()
    model.decoder.zero_grad()
    loss = compute(model.decoder, model.loss, encoded, *batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.decoder.named_parameters()}
    return {"loss": loss.detach(), "encoded": encoded.grad, **gradients}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "overrides", [(), ("model.squeeze_single=true",), ("model.num_books=3",), ("num_classes=2048",)]
)
def test_bits_are_nemos(
    pair: Any, same_bits: Any, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], threads: int
) -> None:
    monkeypatch.setattr(counted_tokens, "SMALLEST", 0)
    models, before = pair("size=tiny", *overrides), torch.get_num_threads()
    decoder = models.nest.decoder
    of_books = () if decoder.squeeze_single else (decoder.num_decoders,)
    torch.set_num_threads(threads)
    try:
        for utterances, steps in ((2, 38), (8, 201), (16, 50), (3, 9)):
            torch.manual_seed(steps)
            encoded = torch.randn(utterances, steps, 64).transpose(1, 2)
            tokens = torch.randint(0, 128, (utterances, steps, *of_books))
            masks = (torch.rand(utterances, 1, steps) < 0.3).float().repeat_interleave(8, dim=2).expand(-1, 80, -1)
            batch = encoded, tokens, masks
            same_bits(stepped(of_all, models.nemo, *batch), stepped(loss_of_counted, models.nest, *batch))
    finally:
        torch.set_num_threads(before)
