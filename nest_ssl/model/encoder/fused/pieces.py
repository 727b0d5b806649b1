"""What the fused branches have in common: dropout's draws, layer norm, and the gradients of a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor

from nest_ssl.kernels.draws import bernoulli


def draw_kept(like: Tensor, rate: float) -> Tensor | None:
    """Which elements dropout keeps, drawn as `F.dropout` does on a CPU: a number each, in memory's order.

    Args:
        like: contiguous, of the shape to draw.
        rate: None is returned where it is 0, and nothing drawn.
    """
    return bernoulli(like, 1 - rate) if rate else None


def normalise(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm, means and reciprocal standard deviations."""
    return torch.native_layer_norm(x_BTD, x_BTD.shape[-1:], weight_D, bias_D, eps)


def normalise_backward(
    d_BTD: Tensor, x_BTD: Tensor, mean: Tensor, rstd: Tensor, weight_D: Tensor, bias_D: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what was normalised, of the weight and of the bias."""
    shape, wanted = list(x_BTD.shape[-1:]), [True, True, True]
    grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        d_BTD, x_BTD, shape, mean, rstd, weight_D, bias_D, wanted
    )
    return grads


def linear_backward(d: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of input, weight and bias of a linear layer, whose output has the gradient `d`, with autograd's calls.

    Args:
        d, x: (..., outputs) and, contiguous, (..., inputs).
    """
    d_RO, x_RI = d.reshape(-1, d.size(-1)), x.view(-1, x.size(-1))
    return d_RO.mm(weight).view(x.shape), d_RO.t().mm(x_RI), None if bias is None else d_RO.sum(0)
