"""A second subsampling, between two layers or behind the last: by pooling or by a strided convolution.

Source: NeMo 3.0.0 `nemo.collections.asr.parts.submodules.subsampling.SubsamplingReductionModule`.

Shapes: B batch, T time (S after it), D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nest_ssl.config.parts import Encoder
from nest_ssl.model.encoder.subsampling import ConvSubsampling, conv_length
from nest_ssl.releases import Generation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class SubsamplingReductionModule(nn.Module):
    """`reduction_factor` vectors become one."""

    def __init__(self, settings: Encoder, differences: Generation) -> None:
        super().__init__()
        self.factor = settings.reduction_factor
        width = settings.d_model
        alike = {"subsampling": "striding", "subsampling_factor": self.factor, "subsampling_conv_chunking_factor": 1}
        sizes = {"feat_in": width, "subsampling_conv_channels": width}
        self.reduction_enc: nn.Module
        if settings.reduction == "striding":
            self.reduction_enc = ConvSubsampling(
                settings.model_copy(update={**alike, **sizes}), differences, in_place=False
            )
        else:
            self.reduction_enc = nn.MaxPool1d(self.factor)

    def forward(
        self, x: Float[Tensor, "B T D"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"]]:
        """Vectors (B, T, D) and lengths (B) to (B, S, D) and lengths.

        NeMo divides the lengths of pooled vectors once for every power of two in the factor, each time by all of it:
        with a factor of 4 they come out too short. So they do here.
        """
        if isinstance(self.reduction_enc, ConvSubsampling):
            reduced: tuple[Tensor, Tensor] = self.reduction_enc(x=x, lengths=lengths)
            return reduced
        for _ in range(int(math.log2(self.factor))):
            lengths = conv_length(lengths, self.factor, self.factor, padding=0)
        return self.reduction_enc(x.transpose(1, 2)).transpose(1, 2), lengths.to(torch.int32)
