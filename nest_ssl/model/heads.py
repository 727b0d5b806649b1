"""The prediction head: log-probabilities of every code of every codebook.

Source: NeMo 3.0.0 `nemo.collections.asr.modules.ssl_modules.multi_softmax_decoder`.

Shapes: B batch, T time, D model width, C codes, H codebooks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIALISATIONS = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    None: lambda weight: weight,
}


class MultiSoftmaxDecoder(nn.Module):
    """One linear layer for all codebooks, one softmax for each.

    Args:
        feat_in, num_classes, num_decoders: D, C, H.
        init_mode: a key of `INITIALISATIONS`, for the weight; the bias keeps torch's own.
        squeeze_single: drop the codebook axis if there is but one.
    """

    def __init__(
        self,
        feat_in: int,
        num_classes: int,
        num_decoders: int = 1,
        init_mode: str | None = "xavier_uniform",
        use_bias: bool = False,
        squeeze_single: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_decoders = num_classes, num_decoders
        self.squeeze_single = squeeze_single and num_decoders == 1
        linear = nn.Conv1d(feat_in, num_classes * num_decoders, kernel_size=1, bias=use_bias)
        INITIALISATIONS[init_mode](linear.weight)
        self.decoder_layers = nn.Sequential(linear)

    def forward(self, encoder_output: Tensor) -> Tensor:
        """Encodings (B, D, T) to log-probabilities (B, T, C, H)."""
        logits_BTX = self.decoder_layers(encoder_output).transpose(1, 2)
        logits_BTCH = logits_BTX.reshape(*logits_BTX.shape[:2], self.num_classes, self.num_decoders)
        return torch.log_softmax(logits_BTCH.squeeze(-1) if self.squeeze_single else logits_BTCH, dim=2)
