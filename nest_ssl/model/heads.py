"""What predicts from encodings: log-probabilities of codes or characters, or vectors to compare.

Source: NeMo 3.0.0 `nemo.collections.asr.modules`: `ssl_modules.multi_softmax_decoder`, `conv_asr`.

Shapes: B batch, T time, D model width, C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nest_ssl.config.losses import Decoder, OneSoftmax, Reconstruction, Transducer
from nest_ssl.model.transducer import RNNTDecoderJointSSL

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
        return self.log_probs(logits_BTX)

    def log_probs(self, logits: Float[Tensor, "*N X"]) -> Float[Tensor, "*N C *H"]:
        """Logits (..., X) to log-probabilities (..., C, H), each token by itself."""
        by_book = logits.reshape(*logits.shape[:-1], self.num_classes, self.num_decoders)
        return torch.log_softmax(by_book.squeeze(-1) if self.squeeze_single else by_book, dim=logits.dim() - 1)


class ConvASRDecoder(nn.Module):
    """One linear layer and its softmax."""

    needs_labels = False

    def __init__(self, settings: OneSoftmax) -> None:
        super().__init__()
        layer = nn.Conv1d(settings.feat_in, settings.outputs, kernel_size=1)
        INITIALISATIONS[settings.init_mode](layer.weight)
        self.decoder_layers = nn.Sequential(layer)

    def forward(self, encoder_output: Float[Tensor, "B D T"]) -> Float[Tensor, "B T C"]:
        """Encodings (B, D, T) to log-probabilities (B, T, C)."""
        return torch.log_softmax(self.decoder_layers(encoder_output).transpose(1, 2), dim=-1)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity, "hardtanh": nn.Hardtanh, "relu": nn.ReLU, "selu": nn.SELU, "gelu": nn.GELU,
    "swish": nn.SiLU, "silu": nn.SiLU,
}  # fmt: skip


class ConvASRDecoderReconstruction(nn.Module):
    """Convolutions to vectors of any width, at the encoder's rate or at another: each of `stride_layers` has twice as
    many frames, or half as many."""

    needs_labels = False

    def __init__(self, settings: Reconstruction) -> None:
        super().__init__()
        width, kernel = settings.feat_hidden, settings.kernel_size
        activation = ACTIVATIONS[settings.activation]()  # one module, used several times, as in NeMo
        layers: list[nn.Module] = [nn.Conv1d(settings.feat_in, width, kernel_size=1)]
        for number in range(settings.stride_layers + settings.non_stride_layers):
            if number >= settings.stride_layers:
                each: nn.Module = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
            elif settings.stride_transpose:
                padding = (kernel - 3) // 2 + 1
                each = nn.ConvTranspose1d(width, width, kernel, 2, padding, output_padding=1, groups=width)
            else:
                each = nn.Conv1d(width, width, kernel, 2, (kernel - 1) // 2, groups=width)
            pointwise = nn.Conv1d(width, width, kernel_size=1)
            layers += [activation, each, pointwise, nn.BatchNorm1d(width, eps=1e-3, momentum=0.1)]
        layers += [activation, nn.Conv1d(width, settings.feat_out, kernel_size=1)]
        self.decoder_layers, self.apply_softmax = nn.Sequential(*layers), settings.apply_softmax
        for layer in layers:
            if isinstance(layer, nn.Conv1d):
                INITIALISATIONS[settings.init_mode](layer.weight)

    def forward(self, encoder_output: Float[Tensor, "B D T"]) -> Float[Tensor, "B S X"]:
        """Encodings (B, D, T) to vectors (B, S, X), or their log-probabilities."""
        out_BSX: Tensor = self.decoder_layers(encoder_output).transpose(1, 2)
        return torch.log_softmax(out_BSX, dim=-1) if self.apply_softmax else out_BSX


Head = ConvASRDecoder | ConvASRDecoderReconstruction | RNNTDecoderJointSSL


def head_of(settings: OneSoftmax | Reconstruction | Transducer) -> Head:
    """The head that the settings name."""
    if isinstance(settings, Transducer):
        return RNNTDecoderJointSSL(settings)
    return ConvASRDecoder(settings) if isinstance(settings, OneSoftmax) else ConvASRDecoderReconstruction(settings)
