"""The FastConformer encoder.

Source: Conformer (arXiv 2005.08100), FastConformer (arXiv 2305.05084); NeMo 3.0.0, in `nemo.collections.asr`:
`modules.conformer_encoder`, `parts.submodules.conformer_modules` and `parts.submodules.causal_convs`.
Not here: streaming, limited context, reduction, stochastic depth, adapters (`registry.py` refuses them). Parameters
named `cache...` are NeMo's streaming interface: always None, and there so that calls read alike on both sides.

Shapes: B batch, T time (frames before subsampling, vectors after), F features, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.model.attention import RelPositionalEncoding, RelPositionMultiHeadAttention
from nest_ssl.model.subsampling import ConvSubsampling


class Swish(nn.SiLU):
    """x * sigmoid(x), under NeMo's name."""


class CausalConv1D(nn.Conv1d):
    """A 1-D convolution padded by `context` (frames to the left, frames to the right)."""

    def __init__(self, channels: int, kernel_size: int, context: Sequence[int], bias: bool) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels, bias=bias)
        self.context = tuple(context)

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """(B, D, T) to (B, D, T)."""
        return super().forward(F.pad(x, self.context))


class ConformerFeedForward(nn.Module):
    """Two linear layers with an activation and dropout between; `activation` may be shared with other modules."""

    def __init__(self, d_model: int, d_ff: int, dropout: float, activation: nn.Module, use_bias: bool = True) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ff, bias=use_bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(d_ff, d_model, bias=use_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class ConformerConvolution(nn.Module):
    """Pointwise convolution with a gate, depthwise convolution over time, batch norm, pointwise convolution back."""

    def __init__(self, d_model: int, kernel_size: int, context: Sequence[int], use_bias: bool = True) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(d_model, 2 * d_model, kernel_size=1, bias=use_bias)
        self.depthwise_conv = CausalConv1D(d_model, kernel_size, context, bias=use_bias)
        self.batch_norm = nn.BatchNorm1d(d_model)
        self.activation = Swish()
        self.pointwise_conv2 = nn.Conv1d(d_model, d_model, kernel_size=1, bias=use_bias)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None, cache: None = None) -> Tensor:
        """`x` (B, T, D) and `pad_mask` (B, T), true beyond the end, to (B, T, D): a transposed view."""
        x_BDT = F.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1)
        if pad_mask is not None:
            x_BDT = x_BDT.masked_fill(pad_mask.unsqueeze(1), 0.0)
        x_BDT = self.activation(self.batch_norm(self.depthwise_conv(x_BDT, cache=cache)))
        return self.pointwise_conv2(x_BDT).transpose(1, 2)


class ConformerLayer(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step: each normed, dropped out, added."""

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        n_heads: int,
        conv_kernel_size: int,
        conv_context_size: Sequence[int],
        dropout: float,
        dropout_att: float,
        activation: nn.Module,
        pos_bias_u: nn.Parameter | None = None,
        pos_bias_v: nn.Parameter | None = None,
        use_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm_feed_forward1 = nn.LayerNorm(d_model)
        self.feed_forward1 = ConformerFeedForward(d_model, d_ff, dropout, activation, use_bias)
        self.norm_conv = nn.LayerNorm(d_model)
        self.conv = ConformerConvolution(d_model, conv_kernel_size, conv_context_size, use_bias)
        self.norm_self_att = nn.LayerNorm(d_model)
        self.self_attn = RelPositionMultiHeadAttention(n_heads, d_model, dropout_att, pos_bias_u, pos_bias_v, use_bias)
        self.norm_feed_forward2 = nn.LayerNorm(d_model)
        self.feed_forward2 = ConformerFeedForward(d_model, d_ff, dropout, activation, use_bias)
        self.dropout = nn.Dropout(dropout)
        self.norm_out = nn.LayerNorm(d_model)

    def forward(
        self,
        x: Tensor,
        att_mask: Tensor | None = None,
        pos_emb: Tensor | None = None,
        pad_mask: Tensor | None = None,
        cache_last_channel: None = None,
        cache_last_time: None = None,
    ) -> Tensor:
        """(B, T, D) to (B, T, D). Masks are true where nothing may be seen: `att_mask` (B, T, T), `pad_mask` (B, T)."""
        x = x + self.dropout(self.feed_forward1(self.norm_feed_forward1(x))) * 0.5
        y = self.norm_self_att(x)
        y = self.self_attn(query=y, key=y, value=y, mask=att_mask, pos_emb=pos_emb, cache=cache_last_channel)
        x = x + self.dropout(y)
        x = x + self.dropout(self.conv(self.norm_conv(x), pad_mask=pad_mask, cache=cache_last_time))
        x = x + self.dropout(self.feed_forward2(self.norm_feed_forward2(x))) * 0.5
        return self.norm_out(x)


class ConformerEncoder(nn.Module):
    """Subsampling, positions, and `n_layers` Conformer layers.

    Args:
        feat_in, d_model, n_layers: F, D, the number of layers.
        feat_out: width of a last linear layer; -1 for none.
        subsampling, subsampling_factor, subsampling_conv_chunking_factor: see `ConvSubsampling`.
        subsampling_conv_channels: its channels; -1 for `d_model`.
        xscaling: multiply the input of the layers by sqrt(d_model).
        untie_biases: attention's position biases for each layer, and not one pair for all.
        pos_emb_max_len: frames for which positions are computed in advance; longer audio extends the table.
        conv_context_size: [left, right] frames that the convolution sees; ``causal``; None for the same on both sides.
        dropout, dropout_pre_encoder, dropout_emb, dropout_att: on residual and feed-forward, on the input of layers,
            on the positions, on the attention probabilities.
        sync_max_audio_length: extend the table of positions on all ranks alike, so that their buffers keep one shape.
        subsampling_mask, subsampled_length: see `generations.Generation`.

    Raises:
        UserError: sizes that do not fit each other.
    """

    def __init__(
        self,
        feat_in: int,
        n_layers: int,
        d_model: int,
        feat_out: int = -1,
        subsampling: str = "striding",
        subsampling_factor: int = 4,
        subsampling_conv_chunking_factor: int = 1,
        subsampling_conv_channels: int = -1,
        ff_expansion_factor: int = 4,
        n_heads: int = 4,
        xscaling: bool = True,
        untie_biases: bool = True,
        pos_emb_max_len: int = 5000,
        conv_kernel_size: int = 31,
        conv_context_size: Sequence[int] | str | None = None,
        use_bias: bool = True,
        dropout: float = 0.1,
        dropout_pre_encoder: float = 0.1,
        dropout_emb: float = 0.1,
        dropout_att: float = 0.0,
        sync_max_audio_length: bool = True,
        subsampling_mask: bool = True,
        subsampled_length: str = "int64",
    ) -> None:
        super().__init__()
        _require_whole_heads(d_model, n_heads)
        self.max_audio_length, self.sync_max_audio_length = pos_emb_max_len, sync_max_audio_length
        self.pre_encode = ConvSubsampling(
            subsampling=subsampling,
            subsampling_factor=subsampling_factor,
            feat_in=feat_in,
            feat_out=d_model,
            conv_channels=d_model if subsampling_conv_channels == -1 else subsampling_conv_channels,
            subsampling_conv_chunking_factor=subsampling_conv_chunking_factor,
            subsampling_mask=subsampling_mask,
            subsampled_length=subsampled_length,
        )
        xscale = math.sqrt(d_model) if xscaling else None
        self.pos_enc = RelPositionalEncoding(d_model, dropout_pre_encoder, pos_emb_max_len, xscale, dropout_emb)
        bias_u, bias_v = (None if untie_biases else _position_bias(n_heads, d_model // n_heads) for _ in "uv")
        activation = Swish()  # one module for all feed-forward modules, as in NeMo
        self.layers = nn.ModuleList(
            ConformerLayer(
                d_model=d_model,
                d_ff=d_model * ff_expansion_factor,
                n_heads=n_heads,
                conv_kernel_size=conv_kernel_size,
                conv_context_size=_conv_context(conv_context_size, conv_kernel_size),
                dropout=dropout,
                dropout_att=dropout_att,
                activation=activation,
                pos_bias_u=bias_u,
                pos_bias_v=bias_v,
                use_bias=use_bias,
            )
            for _ in range(n_layers)
        )
        self.out_proj = nn.Linear(d_model, feat_out) if feat_out > 0 and feat_out != d_model else None

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and lengths (B) to encodings (B, D, T') and lengths."""
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


def _position_bias(n_heads: int, d_k: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(n_heads, d_k))


def _require_whole_heads(d_model: int, n_heads: int) -> None:
    if d_model % n_heads:
        what = f"d_model {d_model} is no multiple of n_heads {n_heads}"
        raise UserError(what, "model.encoder.n_heads", "Change one of the two.")


def _conv_context(context: Sequence[int] | str | None, kernel_size: int) -> list[int]:
    if context is None and kernel_size % 2:
        return [kernel_size // 2, kernel_size // 2]
    if context == "causal":
        return [kernel_size - 1, 0]
    if context is not None and not isinstance(context, str) and sum(context) + 1 == kernel_size and len(context) == 2:
        return list(context)
    raise UserError(
        f"a kernel of {kernel_size} does not fit the context {context}",
        "model.encoder.conv_context_size",
        "Give null with an odd conv_kernel_size, causal, or [left, right] with left + right + 1 = conv_kernel_size.",
    )
