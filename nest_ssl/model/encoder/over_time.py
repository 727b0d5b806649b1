"""Subsampling by convolutions over time alone, all features at once; NeMo 2.4 has it, and later ones stop at it.

Source: NeMo 2.4.1 `nemo.collections.asr.parts.submodules.subsampling`.

Shapes: B batch, T frames (S of them after the strided convolutions) and F features, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from nest_ssl.config.parts import Encoder
from nest_ssl.model.encoder.subsampling import KERNEL, LENGTH_DTYPES, PADDING, STRIDE, conv_length
from nest_ssl.releases import Generation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class ConvSubsampling(nn.Module):
    """Strided convolutions over time alone, of all features at once: the last gives vectors of the model's width."""

    def __init__(self, settings: Encoder, differences: Generation, in_place: bool = True) -> None:
        super().__init__()
        self.stages = int(math.log2(settings.subsampling_factor))
        activation, channels, layers = nn.ReLU(inplace=in_place), settings.feat_in, list[nn.Module]()
        kernel, padding = KERNEL + 2, PADDING + 1
        for stage in range(self.stages):
            width = settings.d_model if stage == self.stages - 1 else settings.conv_channels
            if settings.subsampling == "dw_striding_conv1d":
                layers.append(nn.Conv1d(channels, channels, kernel, STRIDE, padding, groups=channels))
                layers.append(nn.Conv1d(channels, width, kernel_size=1))
            else:
                layers.append(nn.Conv1d(channels, width, kernel, STRIDE, padding))
            layers.append(activation)
            channels = width
        self.conv, self.length_dtype = nn.Sequential(*layers), LENGTH_DTYPES[differences.subsampled_length]

    def forward(
        self, x: Float[Tensor, "B T F"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"]]:
        """Features (B, T, F) and lengths (B) to vectors (B, S, D) and lengths."""
        for _ in range(self.stages):
            lengths = conv_length(lengths, KERNEL, STRIDE, PADDING)  # as many as behind the wider kernels
        return self.conv(x.transpose(1, 2)).transpose(1, 2), lengths.to(self.length_dtype)
