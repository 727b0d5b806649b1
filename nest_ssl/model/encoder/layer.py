"""One layer of the FastConformer, and the modules in it.

Source: Conformer (arXiv 2005.08100, section 2); NeMo 3.0.0, in `nemo.collections.asr.parts.submodules`:
`conformer_modules` and `causal_convs`. Parameters named `cache...` are NeMo's streaming interface: always None, and
there so that calls read alike on both sides.

Shapes: B batch, T time, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.config.parts import Encoder
from nest_ssl.kernels.dropout import Dropout
from nest_ssl.model.encoder.attention import RelPositionMultiHeadAttention
from nest_ssl.model.encoder.fused.choice import Methods, is_fusable
from nest_ssl.model.encoder.fused.layer import fused_layer
from nest_ssl.model.encoder.kinds import attention_of, conv_norm_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class Swish(nn.SiLU):
    """x * sigmoid(x), under NeMo's name."""


class CausalConv1D(nn.Conv1d):
    """A 1-D convolution padded by `context` (frames to the left, frames to the right)."""

    def __init__(self, channels: int, kernel_size: int, context: Sequence[int], bias: bool) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels, bias=bias)
        self.context = tuple(context)

    def forward(self, x: Float[Tensor, "B D T"], cache: None = None) -> Float[Tensor, "B D T"]:
        """(B, D, T) to (B, D, T)."""
        return super().forward(F.pad(x, self.context))


class ConformerFeedForward(nn.Module):
    """Two linear layers with an activation and dropout between; `activation` may be shared with other modules."""

    def __init__(self, d_model: int, d_ff: int, dropout: float, activation: nn.Module, use_bias: bool = True) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ff, bias=use_bias)
        self.activation = activation
        self.dropout = Dropout(dropout)
        self.linear2 = nn.Linear(d_ff, d_model, bias=use_bias)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """(B, T, D) to (B, T, D)."""
        x_BTD: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return x_BTD


class ConformerConvolution(nn.Module):
    """Pointwise convolution with a gate, depthwise convolution over time, a norm, pointwise convolution back."""

    def __init__(
        self, d_model: int, kernel_size: int, context: Sequence[int], use_bias: bool = True, norm: str = "batch_norm"
    ) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(d_model, 2 * d_model, kernel_size=1, bias=use_bias)
        self.depthwise_conv = CausalConv1D(d_model, kernel_size, context, bias=use_bias)
        self.batch_norm = conv_norm_of(norm, d_model)  # under this name in NeMo, whichever it is
        self.activation = Swish()
        self.pointwise_conv2 = nn.Conv1d(d_model, d_model, kernel_size=1, bias=use_bias)

    def forward(
        self, x: Float[Tensor, "B T D"], pad_mask: Bool[Tensor, "B T"] | None = None, cache: None = None
    ) -> Float[Tensor, "B T D"]:
        """`x` (B, T, D) and `pad_mask` (B, T), true beyond the end, to (B, T, D): a transposed view."""
        x_BDT = F.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1)
        if pad_mask is not None:
            x_BDT = x_BDT.masked_fill(pad_mask.unsqueeze(1), 0.0)
        x_BDT = self.activation(self.normalise(self.depthwise_conv(x_BDT, cache=cache)))
        x_BTD: Tensor = self.pointwise_conv2(x_BDT).transpose(1, 2)
        return x_BTD

    def normalise(self, x_BDT: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        """The norm; layer norm takes the channels last."""
        if isinstance(self.batch_norm, nn.LayerNorm):
            normed_BDT: Tensor = self.batch_norm(x_BDT.transpose(1, 2)).transpose(1, 2)
        else:
            normed_BDT = self.batch_norm(x_BDT)
        return normed_BDT


class ConformerLayer(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step: each normed, dropped out, added."""

    def __init__(
        self,
        settings: Encoder,
        activation: nn.Module,
        pos_bias_u: nn.Parameter | None = None,
        pos_bias_v: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        d_model, d_ff = settings.d_model, settings.d_model * settings.ff_expansion_factor
        dropout, use_bias = settings.dropout, settings.use_bias
        self.norm_feed_forward1 = nn.LayerNorm(d_model)
        self.feed_forward1 = ConformerFeedForward(d_model, d_ff, dropout, activation, use_bias)
        self.norm_conv = nn.LayerNorm(d_model)
        self.conv = ConformerConvolution(
            d_model, settings.conv_kernel_size, settings.conv_context, use_bias, settings.conv_norm_type
        )
        self.norm_self_att = nn.LayerNorm(d_model)
        self.self_attn: Any = attention_of(settings, pos_bias_u, pos_bias_v)
        self.norm_feed_forward2 = nn.LayerNorm(d_model)
        self.feed_forward2 = ConformerFeedForward(d_model, d_ff, dropout, activation, use_bias)
        self.dropout = Dropout(dropout)
        self.norm_out = nn.LayerNorm(d_model)
        # What lies behind it reads its input too then, whose gradient is a sum of three in the order of their coming.
        self.shares_its_input = settings.stochastic_depth_drop_prob > 0

    @property
    def is_of_the_paper(self) -> bool:
        """Whether it has the paper's modules, each of its own class to the last, and its input to itself.

        Of this kind alone are fused ones. A layer that was changed in Python, as by an adapter in place of a linear
        layer, or by another forward in the class of one, is of another.
        """
        if not _METHODS.are_as_imported():
            return False
        paths = ((path.rpartition(".")[2], module) for path, module in self.named_modules() if path)
        if any(type(module) is not _PAPERS.get(name) or not _is_plain(module) for name, module in paths):
            return False
        parts = self, self.feed_forward1, self.self_attn, self.feed_forward2
        if any(part.dropout.p == 1 for part in parts):
            return False  # it keeps nothing, and draws nothing
        norms = [module for module in self.modules() if isinstance(module, nn.LayerNorm | nn.BatchNorm1d)]
        with_weights = all(norm.weight is not None and norm.bias is not None for norm in norms)
        batch_norm = self.conv.batch_norm
        averages = batch_norm.running_mean is not None and batch_norm.momentum is not None
        plain = self.self_attn.linear_pos.bias is None and not self.shares_its_input
        return with_weights and averages and plain

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        att_mask: Bool[Tensor, "B T T"] | None = None,
        pos_emb: Float[Tensor, "1 P D"] | None = None,
        pad_mask: Bool[Tensor, "B T"] | None = None,
        cache_last_channel: None = None,
        cache_last_time: None = None,
    ) -> Float[Tensor, "B T D"]:
        """(B, T, D) to (B, T, D). Masks are true where nothing may be seen: `att_mask` (B, T, T), `pad_mask` (B, T)."""
        distances = 1, 2 * x.size(1) - 1  # as many as loops over pairs of frames read; fused, they get no gradient
        if pos_emb is not None and pos_emb.shape[:2] == distances and not pos_emb.requires_grad and is_fusable(self, x):
            return fused_layer(self, x, att_mask, pos_emb, pad_mask)
        x = x + self.dropout(self.feed_forward1(self.norm_feed_forward1(x))) * 0.5
        y = self.norm_self_att(x)
        known = {"mask": att_mask, "pad_mask": pad_mask, "pos_emb": pos_emb}
        seen = {name: known[name] for name in self.self_attn.SEES}
        y = self.self_attn(query=y, key=y, value=y, **seen, cache=cache_last_channel)
        x = x + self.dropout(y)
        x = x + self.dropout(self.conv(self.norm_conv(x), pad_mask=pad_mask, cache=cache_last_time))
        x = x + self.dropout(self.feed_forward2(self.norm_feed_forward2(x))) * 0.5
        x = self.norm_out(x)
        return x


def _is_plain(module: nn.Module) -> bool:
    """Whether what can be set on a module and fused functions do not read is as it is where a layer is built."""
    if isinstance(module, nn.Conv1d):
        groups = module.in_channels if isinstance(module, CausalConv1D) else 1
        set_on_it = module.stride, module.padding, module.dilation, module.padding_mode, module.groups
        return set_on_it == ((1,), (0,), (1,), "zeros", groups)
    if isinstance(module, nn.BatchNorm1d):
        return module.track_running_stats
    return not getattr(module, "inplace", False)  # dropout's: its gradients lie otherwise, and add up so


# By the last part of its path, of which class each module of a layer is where the layer is the paper's.
_PAPERS: dict[str, type[nn.Module]] = {
    **dict.fromkeys(("feed_forward1", "feed_forward2"), ConformerFeedForward),
    **dict.fromkeys(("linear1", "linear2", "linear_q", "linear_k", "linear_v", "linear_out", "linear_pos"), nn.Linear),
    **dict.fromkeys(
        ("norm_feed_forward1", "norm_self_att", "norm_conv", "norm_feed_forward2", "norm_out"), nn.LayerNorm
    ),
    **dict.fromkeys(("pointwise_conv1", "pointwise_conv2"), nn.Conv1d),
    "self_attn": RelPositionMultiHeadAttention,
    "conv": ConformerConvolution,
    "depthwise_conv": CausalConv1D,
    "batch_norm": nn.BatchNorm1d,
    "activation": Swish,
    "dropout": Dropout,
}
_METHODS = Methods(*_PAPERS.values())
