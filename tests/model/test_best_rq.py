"""The model without noise: NEST that hears what it has to predict."""

from __future__ import annotations

import torch
from torch import Tensor

from nest_ssl.config.compose import compose
from nest_ssl.model.best_rq import BestRqModel
from nest_ssl.model.nest import NestModel

AUDIO, LENGTHS = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(1)), torch.tensor([32_000, 20_000])


def outputs(kind: type[NestModel], noise: float | None) -> tuple[Tensor, ...]:
    """Of a tiny model built and run from a seed, on audio and, for NEST, on it with so much noise."""
    model_cfg = compose(["size=tiny", "model.masking.mask_prob=0.05"]).model
    torch.manual_seed(0)
    model = kind(model_cfg).eval()
    noisy = {} if noise is None else {"noisy_input_signal": AUDIO + noise, "noisy_input_signal_length": LENGTHS}
    return model(AUDIO.clone(), LENGTHS, **noisy, apply_mask=True)


def test_it_is_nest_on_clean_audio() -> None:
    found = outputs(BestRqModel, None)
    for one, other in zip(found, outputs(NestModel, 0.0), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(found[0], outputs(NestModel, 0.1)[0])
    assert found[2].any()
