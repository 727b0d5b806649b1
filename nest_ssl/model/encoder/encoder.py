"""The FastConformer encoder.

Source: Conformer (arXiv 2005.08100), FastConformer (arXiv 2305.05084); NeMo 3.0.0
`nemo.collections.asr.modules.conformer_encoder`.
Not here: streaming, limited context, reduction, stochastic depth, adapters (`config/parts.py` refuses them).

Shapes: B batch, T time (frames before subsampling, vectors after), F features, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor, nn

from nest_ssl.config.parts import Encoder
from nest_ssl.model.encoder.attention import RelPositionalEncoding
from nest_ssl.model.encoder.layer import ConformerLayer, Swish
from nest_ssl.model.encoder.subsampling import ConvSubsampling
from nest_ssl.releases import GENERATIONS, NEWEST, Generation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class ConformerEncoder(nn.Module):
    """Subsampling, positions, and `n_layers` Conformer layers."""

    def __init__(self, settings: Encoder, differences: Generation = GENERATIONS[NEWEST]) -> None:
        super().__init__()
        d_model, n_heads = settings.d_model, settings.n_heads
        self.max_audio_length = settings.pos_emb_max_len
        self.sync_max_audio_length = settings.sync_max_audio_length
        self.pre_encode = ConvSubsampling(settings, differences)
        self.pos_enc = RelPositionalEncoding(
            d_model,
            settings.dropout_pre_encoder,
            settings.pos_emb_max_len,
            xscale=math.sqrt(d_model) if settings.xscaling else None,
            dropout_rate_emb=settings.dropout_emb,
        )
        shared: tuple[nn.Parameter, ...] = ()
        if not settings.untie_biases:  # one pair for all layers
            shared = tuple(nn.Parameter(torch.zeros(n_heads, d_model // n_heads)) for _ in range(2))
        activation = Swish()  # one module for all feed-forward modules, as in NeMo
        self.layers = nn.ModuleList(ConformerLayer(settings, activation, *shared) for _ in range(settings.n_layers))
        has_projection = settings.feat_out > 0 and settings.feat_out != d_model
        self.out_proj = nn.Linear(d_model, settings.feat_out) if has_projection else None

    def forward(
        self, audio_signal: Float[Tensor, "B F T"], length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D S"], Int[Tensor, " B"]]:
        """Features (B, F, T) and lengths (B) to encodings (B, D, S) and lengths."""
        self._extend_positions(audio_signal.size(2), audio_signal.device)
        x_BTD, length = self.pre_encode(x=audio_signal.transpose(1, 2), lengths=length)
        length = length.to(torch.int64)
        x_BTD, pos_emb = self.pos_enc(x=x_BTD, cache_len=0)

        valid_BT = torch.arange(x_BTD.size(1), device=x_BTD.device) < length.unsqueeze(1)
        pad_mask, att_mask = ~valid_BT, ~(valid_BT.unsqueeze(2) & valid_BT.unsqueeze(1))
        for layer in self.layers:
            x_BTD = layer(
                x=x_BTD,
                att_mask=att_mask,
                pos_emb=pos_emb,
                pad_mask=pad_mask,
                cache_last_channel=None,
                cache_last_time=None,
            )
        if self.out_proj is not None:
            x_BTD = self.out_proj(x_BTD)
        return x_BTD.transpose(1, 2), length

    def _extend_positions(self, frames: int, device: torch.device) -> None:
        if self.sync_max_audio_length and torch.distributed.is_available() and torch.distributed.is_initialized():
            longest = torch.tensor([frames], device=device)
            torch.distributed.all_reduce(longest, op=torch.distributed.ReduceOp.MAX)
            frames = int(longest.item())
        if frames > self.max_audio_length:  # counted before subsampling, so rather early; as in NeMo
            self.max_audio_length = frames
            self.pos_enc.extend_pe(frames)
