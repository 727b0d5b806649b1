"""A Conformer layer of four fused branches; `nest_ssl/model/encoder/layer.py` says what they compute.

Shapes: B batch, T time, D model width, P relative positions.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nest_ssl.model.encoder.fused.attention import AttentionBranch
from nest_ssl.model.encoder.fused.convolution import ConvolutionBranch
from nest_ssl.model.encoder.fused.feed_forward import FeedForwardBranch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from nest_ssl.model.encoder.attention import RelPositionMultiHeadAttention
    from nest_ssl.model.encoder.layer import ConformerConvolution, ConformerFeedForward, ConformerLayer


def fused_layer(
    layer: ConformerLayer,
    x_BTD: Float[Tensor, "B T D"],
    att_mask_BTT: Bool[Tensor, "B T T"] | None,
    pos_1PD: Float[Tensor, "1 P D"],
    pad_mask_BT: Bool[Tensor, "B T"] | None,
) -> Float[Tensor, "B T D"]:
    """What `layer` computes, to the last bit of output, gradients, batch norm's buffers and generators."""
    rate = layer.dropout.p
    x_BTD = _feed_forward(x_BTD, layer.norm_feed_forward1, layer.feed_forward1, rate)
    x_BTD = _attention(x_BTD, layer.norm_self_att, layer.self_attn, rate, att_mask_BTT, pos_1PD)
    x_BTD = _convolution(x_BTD, layer.norm_conv, layer.conv, rate, pad_mask_BT)
    x_BTD = _feed_forward(x_BTD, layer.norm_feed_forward2, layer.feed_forward2, rate)
    out_BTD: Tensor = layer.norm_out(x_BTD)
    return out_BTD


def _feed_forward(x_BTD: Tensor, norm: nn.LayerNorm, module: ConformerFeedForward, rate: float) -> Tensor:
    weights = _weights(norm, module.linear1, module.linear2)
    return _apply(FeedForwardBranch, x_BTD, *weights, norm.eps, module.dropout.p, rate)


def _attention(
    x_BTD: Tensor,
    norm: nn.LayerNorm,
    module: RelPositionMultiHeadAttention,
    rate: float,
    mask_BTT: Tensor | None,
    pos_1PD: Tensor,
) -> Tensor:
    inputs = *_weights(norm, module.linear_q, module.linear_k, module.linear_v), module.linear_pos.weight
    weights = *inputs, module.pos_bias_u, module.pos_bias_v, *_weights(module.linear_out)
    return _apply(AttentionBranch, x_BTD, pos_1PD, mask_BTT, norm.eps, module.dropout.p, rate, *weights)


def _convolution(
    x_BTD: Tensor, norm: nn.LayerNorm, module: ConformerConvolution, rate: float, pad_mask_BT: Tensor | None
) -> Tensor:
    batch_norm, depthwise = module.batch_norm, module.depthwise_conv
    running = batch_norm.running_mean, batch_norm.running_var
    assert batch_norm.num_batches_tracked is not None
    batch_norm.num_batches_tracked.add_(1)
    weights = _weights(norm, module.pointwise_conv1, depthwise, batch_norm, module.pointwise_conv2)
    numbers = batch_norm.momentum, batch_norm.eps, norm.eps, rate
    return _apply(ConvolutionBranch, x_BTD, pad_mask_BT, depthwise.context, running, *numbers, *weights)


def _weights(*modules: nn.Module) -> list[Any]:
    return [parameter for module in modules for parameter in (module.weight, module.bias)]


def _apply(function: Any, *arguments: Any) -> Tensor:
    out: Tensor = function.apply(*arguments)
    return out
