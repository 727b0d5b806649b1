"""Which subsampling, attention, positions and norm the settings ask for, by NeMo's names."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Encoder
from nest_ssl.model.encoder import absolute, over_time, sdpa
from nest_ssl.model.encoder.attention import RelPositionalEncoding, RelPositionMultiHeadAttention
from nest_ssl.model.encoder.local import LocalAttRelPositionalEncoding, RelPositionMultiHeadAttentionLongformer
from nest_ssl.model.encoder.subsampling import ConvSubsampling, StackingSubsampling
from nest_ssl.releases import GENERATIONS, NEWEST, Generation

Bias = nn.Parameter | None
UNMASKED = "vggnet", "striding_conv1d", "dw_striding_conv1d"  # their convolutions are given no lengths


def subsampling_of(settings: Encoder, differences: Generation = GENERATIONS[NEWEST]) -> nn.Module:
    """The module between features and layers; a linear layer where nothing is subsampled.

    Raises:
        UserError: convolutions that this generation of NeMo cannot train.
    """
    if not settings.subsampling or settings.subsampling_factor == 1:
        return nn.Linear(settings.feat_in, settings.d_model)
    if settings.subsampling.startswith("stacking"):
        return StackingSubsampling(settings)
    whole = settings.subsampling_conv_chunking_factor == -1
    if differences.subsampling_mask and (whole or settings.subsampling in UNMASKED):
        key = "subsampling_conv_chunking_factor=-1" if whole else f"subsampling={settings.subsampling}"
        what, fix = "NeMo since 2.5 stops at it, too: it gives these convolutions no lengths", "Give another."
        raise UserError(what, f"model.encoder.{key}", fix)
    if settings.subsampling.endswith("conv1d"):
        return over_time.ConvSubsampling(settings, differences)
    return ConvSubsampling(settings, differences)


def attention_of(settings: Encoder, pos_bias_u: Bias = None, pos_bias_v: Bias = None) -> nn.Module:
    """The attention of one layer; position biases as `RelPositionMultiHeadAttention` takes them."""
    sizes = settings.n_heads, settings.d_model, settings.dropout_att
    bias, backends = settings.use_bias, settings.use_pytorch_sdpa_backends
    kinds: dict[tuple[str, bool], Callable[[], nn.Module]] = {
        ("rel_pos", False): lambda: RelPositionMultiHeadAttention(*sizes, pos_bias_u, pos_bias_v, bias),
        ("rel_pos", True): lambda: sdpa.RelPositionMultiHeadAttention(
            *sizes, pos_bias_u, pos_bias_v, bias, backends=backends
        ),
        ("abs_pos", False): lambda: absolute.MultiHeadAttention(*sizes, bias),
        ("abs_pos", True): lambda: sdpa.MultiHeadAttention(*sizes, bias, backends=backends),
        ("rel_pos_local_attn", False): lambda: RelPositionMultiHeadAttentionLongformer(
            *sizes,
            bias,
            context=settings.contexts[0],
            global_tokens=settings.global_tokens,
            global_tokens_spacing=settings.global_tokens_spacing,
            global_attn_separate=settings.global_attn_separate,
        ),
    }
    model = settings.self_attention_model
    return kinds[model, settings.use_pytorch_sdpa and model != "rel_pos_local_attn"]()  # NeMo's local one never uses it


def positions_of(settings: Encoder) -> nn.Module:
    """The positional encoding."""
    d_model, longest = settings.d_model, settings.pos_emb_max_len
    xscale = math.sqrt(d_model) if settings.xscaling else None
    kinds: dict[str, Callable[[], nn.Module]] = {
        "rel_pos": lambda: RelPositionalEncoding(
            d_model, settings.dropout_pre_encoder, longest, xscale=xscale, dropout_rate_emb=settings.dropout_emb
        ),
        "abs_pos": lambda: absolute.PositionalEncoding(d_model, settings.dropout_pre_encoder, longest, xscale),
        # NeMo gives it the layers' own rate of dropout.
        "rel_pos_local_attn": lambda: LocalAttRelPositionalEncoding(
            d_model, settings.contexts[0], settings.dropout, xscale, settings.dropout_emb
        ),
    }
    return kinds[settings.self_attention_model]()


class FusedBatchNorm1d(nn.Module):
    """What is left of batch norm once its statistics are part of its weights: a factor and a sum for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) to (B, D, T)."""
        return x * self.weight.unsqueeze(-1) + self.bias.unsqueeze(-1)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch_norm": nn.BatchNorm1d,
    "instance_norm": nn.InstanceNorm1d,
    "layer_norm": nn.LayerNorm,
    "fused_batch_norm": FusedBatchNorm1d,
}


def conv_norm_of(name: str, channels: int) -> nn.Module:
    """The norm inside the convolution module; `group_norm8` has 8 groups."""
    if name.startswith("group_norm"):
        return nn.GroupNorm(int(name.removeprefix("group_norm")), channels)
    return NORMS[name](channels)
