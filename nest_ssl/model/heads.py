"""The prediction head: log-probabilities of every code of every codebook.

Source: NeMo 3.0.0 `nemo.collections.asr.modules.ssl_modules.multi_softmax_decoder`.

Shapes: B batch, T time, D model width, C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nest_ssl.config.parts import Decoder

if TYPE_CHECKING:
    from jaxtyping import Float


def tds_bound(weight: Tensor) -> float:
    """2 / sqrt(fan in): of time-depth separable convolutions (arXiv 1904.02619, section 2)."""
    return 2.0 / math.sqrt(weight[0].numel())


INITIALISATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "tds_uniform": lambda weight: nn.init.uniform_(weight, -tds_bound(weight), tds_bound(weight)),
    "tds_normal": lambda weight: nn.init.normal_(weight, 0.0, tds_bound(weight)),
    None: lambda weight: weight,
}


class MultiSoftmaxDecoder(nn.Module):
    """One linear layer for all codebooks, one softmax for each."""

    def __init__(self, settings: Decoder) -> None:
        super().__init__()
        self.num_classes, self.num_decoders = settings.num_classes, settings.num_decoders
        self.squeeze_single = settings.squeeze_single and settings.num_decoders == 1
        outputs = settings.num_classes * settings.num_decoders
        linear = nn.Conv1d(settings.feat_in, outputs, kernel_size=1, bias=settings.use_bias)
        INITIALISATIONS[settings.init_mode](linear.weight)  # drawn again; the bias keeps torch's own draw
        self.decoder_layers = nn.Sequential(linear)

    def forward(self, encoder_output: Float[Tensor, "B D T"]) -> Float[Tensor, "B T C *H"]:
        """Encodings (B, D, T) to log-probabilities (B, T, C, H)."""
        logits_BTX = self.decoder_layers(encoder_output).transpose(1, 2)
        logits_BTCH = logits_BTX.reshape(*logits_BTX.shape[:2], self.num_classes, self.num_decoders)
        return torch.log_softmax(logits_BTCH.squeeze(-1) if self.squeeze_single else logits_BTCH, dim=2)
