"""Convolutional encoders: lengths, padding, what they never see, and what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.convolutional import ConvBlock, ConvEncoder
from nest_ssl.config.section import read
from nest_ssl.model.encoder.convolutional import ConvASREncoder, MaskedConv1d

BLOCK = {"filters": 8, "repeat": 1, "kernel": [5], "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False}
TARGET = "nemo.collections.asr.modules.ConvASREncoder"


def encoder(*blocks: dict[str, Any], **keys: Any) -> ConvASREncoder:
    section = {"_target_": TARGET, "activation": "relu", "feat_in": 4, **keys}
    torch.manual_seed(0)
    return ConvASREncoder(read(ConvEncoder, {**section, "jasper": [{**BLOCK, **each} for each in blocks]}, "encoder"))


@pytest.mark.parametrize("changed", [{}, {"residual": True, "residual_mode": "stride_add"}, {"se": True}])
def test_padding_is_never_seen_and_lengths_are_counted(changed: dict[str, Any]) -> None:
    model = encoder({"stride": [2], **changed}, {"separable": True, "residual": True}, {"repeat": 2}).eval()
    audio = torch.randn(1, 4, 30)
    whole, lengths = model(audio_signal=torch.cat([audio, torch.full((1, 4, 11), 9.0)], 2), length=torch.tensor([30]))
    alone, _ = model(audio_signal=audio, length=torch.tensor([30]))
    assert lengths.tolist() == [15] and whole.size(2) == 21
    torch.testing.assert_close(whole[:, :, :15], alone, rtol=1e-4, atol=1e-5)


def test_the_future_that_a_convolution_sees() -> None:
    block = ConvBlock(**{**BLOCK, "future_context": 1})
    assert block.padding == (3, 1)
    layer = MaskedConv1d(1, 1, 5, padding=(3, 1))
    frames = torch.zeros(1, 1, 12)
    frames[0, 0, 6] = 1
    seen = layer(frames, torch.tensor([12]))[0][0, 0].nonzero().flatten().tolist()
    assert seen == [5, 6, 7, 8, 9]


def test_dense_residuals_look_at_every_block_before() -> None:
    model = encoder(*[{"residual": True, "residual_dense": True}] * 3)
    assert [len(block.res) for block in model.encoder] == [1, 2, 3]
    outputs, _ = model.encoder(([torch.randn(2, 4, 10)], torch.tensor([10, 7])))
    assert len(outputs) == 4


@pytest.mark.parametrize(
    ("block", "keys", "said"),
    [
        ({"stride": [2], "dilation": [2]}, {}, "stride and dilation at once"),
        ({"kernel": [3, 5]}, {}, r"jasper\[0\]\.kernel"),
        ({"kernal": [3]}, {}, r"unknown key: .*jasper\[0\]\.kernal"),
        ({"future_context": 1}, {"conv_mask": False}, "NeMo stops at it, too"),
        ({}, {"quantize": True}, "pytorch-quantization"),
        ({"heads": 2}, {}, r"jasper\[0\]\.heads"),
        ({"groups": 3}, {}, r"NeMo stops .*jasper\[0\], 4 to 8, are no multiple .*jasper\[0\]\.groups=3"),
        ({"groups": 8}, {}, r"jasper\[0\]\.groups=8"),
        ({}, {"normalization_mode": "group", "norm_groups": 0}, "no multiple of it: .*norm_groups=0"),
        ({}, {"normalization_mode": "group", "norm_groups": 7}, "no multiple of it: .*norm_groups=7"),
    ],
)
def test_what_does_not_fit_is_refused(block: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        encoder(block, **keys)
