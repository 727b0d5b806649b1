"""x + dropout(convolution(norm(x))) as one autograd function.

Kept for backward: x, the outputs of the first pointwise and of the depthwise convolution, batch norm's output, and
which elements dropout keeps.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nest_ssl.kernels.dropout import drop, drop_
from nest_ssl.model.encoder.fused.pieces import draw_kept, normalise, normalise_backward


class ConvolutionBranch(torch.autograd.Function):
    """`apply(x, pad_mask, context, running mean and variance, their momentum, batch norm's eps, norm's eps, rate,
    10 weights)`.

    The weights: norm's, the first pointwise convolution's, the depthwise one's, batch norm's and the second pointwise
    one's, weight and bias each. `pad_mask` (B, T) is true beyond an utterance's end, or None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        pad_mask_BT: Tensor | None,
        context: Sequence[int],
        running: tuple[Tensor, Tensor],
        momentum: float,
        batch_eps: float,
        eps: float,
        rate: float,
        *weights: Tensor,
    ) -> Tensor:
        norm_weight, norm_bias, w_in, b_in, w_time, b_time, batch_weight, batch_bias, w_out, b_out = weights
        y_BTD, mean, rstd = normalise(x_BTD, norm_weight, norm_bias, eps)
        gated_BXT = F.conv1d(y_BTD.transpose(1, 2), w_in, b_in)
        del y_BTD
        over_time_BDT = F.conv1d(_padded(gated_BXT, pad_mask_BT, context), w_time, b_time, groups=len(w_time))
        normed_BDT, *batch_stats = torch.native_batch_norm(
            over_time_BDT, batch_weight, batch_bias, *running, True, momentum, batch_eps
        )
        out_BDT = F.conv1d(F.silu(normed_BDT), w_out, b_out)
        kept_BDT = draw_kept(out_BDT, rate)  # in this memory's order, as the transposed output's dropout draws
        made = (mean, rstd, gated_BXT, over_time_BDT, normed_BDT, *batch_stats, kept_BDT)
        ctx.save_for_backward(x_BTD, pad_mask_BT, *made, *weights)
        ctx.numbers, ctx.context, ctx.running = (batch_eps, eps, rate), context, running
        return x_BTD + drop_(out_BDT, kept_BDT, rate).transpose(1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, pad_mask_BT, mean, rstd, gated_BXT, over_time_BDT, normed_BDT, *rest = ctx.saved_tensors
        batch_mean, batch_rstd, kept_BDT, *weights = rest
        norm_weight, norm_bias, w_in, b_in, w_time, b_time, batch_weight, _, w_out, b_out = weights
        batch_eps, eps, rate = ctx.numbers
        grad_BTD = grad_BTD.contiguous()
        # A transposed view of what lies in the order of the gradient, as autograd has it: a bias adds it up as it lies.
        kept_BTD = None if kept_BDT is None else kept_BDT.transpose(1, 2).contiguous()
        d_BDT = drop(grad_BTD, kept_BTD, rate).transpose(1, 2)
        d_BDT, *d_out = _conv_backward(d_BDT, F.silu(normed_BDT), w_out, b_out)
        torch.ops.aten.silu_backward.grad_input(d_BDT, normed_BDT, grad_input=d_BDT)
        d_BDT, *d_batch = torch.ops.aten.native_batch_norm_backward(
            d_BDT, over_time_BDT, batch_weight, *ctx.running, batch_mean, batch_rstd, True, batch_eps, [True] * 3
        )
        padded_BDT = _padded(gated_BXT, pad_mask_BT, ctx.context)
        d_BDT, *d_time = _conv_backward(d_BDT, padded_BDT, w_time, b_time, groups=len(w_time))
        d_BDT = d_BDT.narrow(2, ctx.context[0], x_BTD.size(1)).clone(memory_format=torch.contiguous_format)
        if pad_mask_BT is not None:
            d_BDT.masked_fill_(pad_mask_BT.unsqueeze(1), 0.0)
        d_BXT = torch.ops.aten.glu_backward(d_BDT, gated_BXT, 1)
        y_BTD, *_ = normalise(x_BTD, norm_weight, norm_bias, eps)
        d_BDT, *d_in = _conv_backward(d_BXT, y_BTD.transpose(1, 2), w_in, b_in)
        d_BTD = d_BDT.transpose(1, 2)
        d_x_BTD, *d_norm = normalise_backward(d_BTD, x_BTD, mean, rstd, norm_weight, norm_bias)
        return (d_x_BTD.add_(grad_BTD), *[None] * 7, *d_norm, *d_in, *d_time, *d_batch, *d_out)


def _padded(gated_BXT: Tensor, pad_mask_BT: Tensor | None, context: Sequence[int]) -> Tensor:
    """What the depthwise convolution reads: gated, zero beyond the utterance, padded by its context."""
    x_BDT = F.glu(gated_BXT, dim=1)
    if pad_mask_BT is not None:
        x_BDT.masked_fill_(pad_mask_BT.unsqueeze(1), 0.0)
    return F.pad(x_BDT, tuple(context))


def _conv_backward(
    d_BXT: Tensor, x_BDT: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of input, weight and bias of a convolution over time that pads nothing."""
    sizes, wanted = None if bias is None else [len(bias)], [True, True, bias is not None]
    grads: tuple[Tensor, Tensor, Tensor | None] = torch.ops.aten.convolution_backward(
        d_BXT, x_BDT, weight, sizes, [1], [0], [1], False, [0], groups, wanted
    )
    return grads
