"""x + dropout(feed_forward(norm(x))) / 2 as one autograd function.

Kept for backward: x, the first linear layer's output, what the second one reads, and which elements both dropouts keep:
10.3 values of the model's width a frame where the open way keeps 15 (of which the inner dropout's factors are 4). To
compute what the second one reads again takes 0.5 % of a step, and is all that could be spared.

Shapes: B batch, T time, D model width, E inner width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nest_ssl.kernels.dropout import drop_
from nest_ssl.kernels.once import once_differentiable
from nest_ssl.model.encoder.fused.pieces import draw_kept, linear_backward, normalise, normalise_backward


class FeedForwardBranch(torch.autograd.Function):
    """`apply(x, norm's weight and bias, linear1's, linear2's, norm's eps, inner dropout's rate, outer's)`."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BTD: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight_ED: Tensor,
        bias_E: Tensor | None,
        weight_DE: Tensor,
        bias_D: Tensor | None,
        eps: float,
        inner_rate: float,
        outer_rate: float,
    ) -> Tensor:
        y_BTD, mean, rstd = normalise(x_BTD, norm_weight, norm_bias, eps)
        linear_BTE = F.linear(y_BTD, weight_ED, bias_E)
        active_BTE = F.silu(linear_BTE)
        inner = draw_kept(active_BTE, inner_rate)
        z_BTD = F.linear(drop_(active_BTE, inner, inner_rate), weight_DE, bias_D)
        outer = draw_kept(z_BTD, outer_rate)
        weights = (norm_weight, norm_bias, weight_ED, bias_E, weight_DE, bias_D)
        ctx.save_for_backward(x_BTD, mean, rstd, linear_BTE, active_BTE, inner, outer, *weights)
        ctx.numbers = eps, inner_rate, outer_rate
        return drop_(z_BTD, outer, outer_rate).mul_(0.5).add_(x_BTD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, mean, rstd, linear_BTE, active_BTE, inner, outer, *weights = ctx.saved_tensors
        norm_weight, norm_bias, weight_ED, bias_E, weight_DE, bias_D = weights
        eps, inner_rate, outer_rate = ctx.numbers
        grad_BTD = grad_BTD.contiguous()
        d_BTD = drop_(grad_BTD * 0.5, outer, outer_rate)
        d_BTE, d_weight_DE, d_bias_D = linear_backward(d_BTD, active_BTE, weight_DE, bias_D)
        drop_(d_BTE, inner, inner_rate)
        torch.ops.aten.silu_backward.grad_input(d_BTE, linear_BTE, grad_input=d_BTE)
        y_BTD, *_ = normalise(x_BTD, norm_weight, norm_bias, eps)
        d_BTD, d_weight_ED, d_bias_E = linear_backward(d_BTE, y_BTD, weight_ED, bias_E)
        d_x_BTD, *d_norm = normalise_backward(d_BTD, x_BTD, mean, rstd, norm_weight, norm_bias)
        return d_x_BTD.add_(grad_BTD), *d_norm, d_weight_ED, d_bias_E, d_weight_DE, d_bias_D, None, None, None
