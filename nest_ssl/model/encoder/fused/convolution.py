"""x + dropout(convolution(norm(x))) as one autograd function.

Kept for backward: x, the outputs of the first pointwise and of the depthwise convolution, batch norm's output, and
which elements dropout keeps.

Shapes: B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nest_ssl.kernels.available import DEPTHWISE, loops
from nest_ssl.kernels.dropout import drop, drop_, loops_for, unfilled
from nest_ssl.kernels.once import once_differentiable
from nest_ssl.model.encoder.fused.pieces import draw_kept, normalise, normalise_backward

SETTINGS = [1], [0], [1], False, [0]  # stride, padding, dilation, transposed, padding of the output
SHAPES = 4096  # for which it is known whether products, or a loop, have the sums of convolutions


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
        products = all(may_multiply(y_BTD.transpose(1, 2), weight) for weight in (w_in, w_out))
        gated_BXT = _pointwise(y_BTD.transpose(1, 2), w_in, b_in, products)
        del y_BTD
        padded_BDT = _padded(gated_BXT, pad_mask_BT, context)
        over_time_BDT = F.conv1d(padded_BDT, w_time, b_time, groups=len(w_time))
        looped = may_loop_over_time(padded_BDT, w_time, b_time)
        del padded_BDT
        normed_BDT, *batch_stats = torch.native_batch_norm(
            over_time_BDT, batch_weight, batch_bias, *running, True, momentum, batch_eps
        )
        out_BDT = _pointwise(F.silu(normed_BDT), w_out, b_out, products)
        kept_BDT = draw_kept(out_BDT, rate)  # in this memory's order, as the transposed output's dropout draws
        made = (mean, rstd, gated_BXT, over_time_BDT, normed_BDT, *batch_stats, kept_BDT)
        ctx.save_for_backward(x_BTD, pad_mask_BT, *made, *weights)
        ctx.numbers, ctx.context, ctx.running = (batch_eps, eps, rate), context, running
        ctx.products, ctx.looped = products, looped
        return x_BTD + drop_(out_BDT, kept_BDT, rate).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor | None, ...]:
        x_BTD, pad_mask_BT, mean, rstd, gated_BXT, over_time_BDT, normed_BDT, *rest = ctx.saved_tensors
        batch_mean, batch_rstd, kept_BDT, *weights = rest
        norm_weight, norm_bias, w_in, b_in, w_time, b_time, batch_weight, _, w_out, b_out = weights
        batch_eps, eps, rate = ctx.numbers
        grad_BTD = grad_BTD.contiguous()
        # A transposed view of what lies in the order of the gradient, as autograd has it: a bias adds it up as it lies.
        kept_BTD = None if kept_BDT is None else kept_BDT.transpose(1, 2).contiguous()
        d_BDT = drop(grad_BTD, kept_BTD, rate).transpose(1, 2)
        alone = torch.get_num_threads() == 1  # there may be more threads than in forward
        products, looped = ctx.products and alone, ctx.looped and alone
        d_BDT, *d_out = _pointwise_backward(d_BDT, F.silu(normed_BDT), w_out, b_out, products)
        torch.ops.aten.silu_backward.grad_input(d_BDT, normed_BDT, grad_input=d_BDT)
        d_BDT, *d_batch = torch.ops.aten.native_batch_norm_backward(
            d_BDT, over_time_BDT, batch_weight, *ctx.running, batch_mean, batch_rstd, True, batch_eps, [True] * 3
        )
        padded_BDT = _padded(gated_BXT, pad_mask_BT, ctx.context)
        d_BDT, *d_time = _over_time_backward(d_BDT, padded_BDT, w_time, b_time, looped)
        d_BDT = d_BDT.narrow(2, ctx.context[0], x_BTD.size(1)).clone(memory_format=torch.contiguous_format)
        if pad_mask_BT is not None:
            d_BDT.masked_fill_(pad_mask_BT.unsqueeze(1), 0.0)
        d_BXT = torch.ops.aten.glu_backward(d_BDT, gated_BXT, 1)
        y_BTD, *_ = normalise(x_BTD, norm_weight, norm_bias, eps)
        d_BDT, *d_in = _pointwise_backward(d_BXT, y_BTD.transpose(1, 2), w_in, b_in, products)
        d_BTD = d_BDT.transpose(1, 2)
        d_x_BTD, *d_norm = normalise_backward(d_BTD, x_BTD, mean, rstd, norm_weight, norm_bias)
        return (d_x_BTD.add_(grad_BTD), *[None] * 7, *d_norm, *d_in, *d_time, *d_batch, *d_out)


def _padded(gated_BXT: Tensor, pad_mask_BT: Tensor | None, context: Sequence[int]) -> Tensor:
    """What the depthwise convolution reads: gated, zero beyond the utterance, padded by its context."""
    x_BDT = F.glu(gated_BXT, dim=1)
    if pad_mask_BT is not None:
        x_BDT.masked_fill_(pad_mask_BT.unsqueeze(1), 0.0)
    return F.pad(x_BDT, tuple(context))


def may_multiply(x_BDT: Tensor, weight_XD1: Tensor) -> bool:
    """Whether torch computes a pointwise convolution utterance by utterance, on one thread, and products of tensors as
    they lie in memory have its sums. It copies what lies otherwise, and fills the memory first."""
    if torch.get_num_threads() > 1 or x_BDT.dtype is not torch.float32:
        return False
    if torch.get_float32_matmul_precision() != "highest":  # a product may have another one then than a convolution
        return False
    # It is asked by shapes, of the same memory read in order: what lies otherwise it would copy before it answers.
    by_shape_BDT = x_BDT.as_strided(x_BDT.shape, (x_BDT[0].numel(), x_BDT.size(2), 1))
    backend = torch._C._select_conv_backend(by_shape_BDT, weight_XD1, None, *SETTINGS, 1)
    is_of_one = backend == torch._C._ConvBackend.Slow2d  # type: ignore[attr-defined]
    return is_of_one and _products_have_its_sums(*weight_XD1.shape[:2], x_BDT.size(2))


@lru_cache(SHAPES)
def _products_have_its_sums(outputs: int, width: int, steps: int) -> bool:
    """Tried with both layouts of what is read and of gradients, over two utterances."""
    draws = torch.Generator().manual_seed(0)  # its own: training's generator is left alone
    sizes = (2, width, steps), (2, outputs, steps), (outputs, width, 1), (outputs,)
    x_2DT, d_2XT, weight, bias = (
        torch.randn(size, generator=draws, dtype=torch.float32, device="cpu") for size in sizes
    )
    for x, d in ((_turned(x_2DT), d_2XT), (x_2DT, _turned(d_2XT))):
        ways: list[tuple[Any, ...]] = [
            (_pointwise(x, weight, bias, products), *_pointwise_backward(d, x, weight, bias, products))
            for products in (False, True)
        ]
        if not all(torch.equal(*each) for each in zip(*ways, strict=True)):
            return False
    return True


def _turned(x_BDT: Tensor) -> Tensor:
    """The same, with channels side by side in memory."""
    return x_BDT.transpose(1, 2).contiguous().transpose(1, 2)


def _pointwise(x_BDT: Tensor, weight_XD1: Tensor, bias_X: Tensor | None, products: bool) -> Tensor:
    """A convolution over one frame; by a product for each utterance if `products`."""
    if not products:
        return F.conv1d(x_BDT, weight_XD1, bias_X)
    out_BXT = unfilled(x_BDT, len(x_BDT), len(weight_XD1), x_BDT.size(2))
    for x_DT, out_XT in zip(x_BDT, out_BXT, strict=True):
        if bias_X is None:
            torch.mm(weight_XD1.squeeze(2), x_DT, out=out_XT)
        else:
            torch.addmm(bias_X.unsqueeze(1), weight_XD1.squeeze(2), x_DT, out=out_XT)
    return out_BXT


def _pointwise_backward(
    d_BXT: Tensor, x_BDT: Tensor, weight_XD1: Tensor, bias_X: Tensor | None, products: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Its gradients; that of what was read lies as this does."""
    if not products:
        return _conv_backward(d_BXT, x_BDT, weight_XD1, bias_X)
    batch, width, steps = x_BDT.shape
    turned = x_BDT.stride(1) == 1
    d_x_BDT = unfilled(x_BDT, batch, steps, width).transpose(1, 2) if turned else unfilled(x_BDT, batch, width, steps)
    d_weight_XD = torch.zeros_like(weight_XD1.squeeze(2))
    for d_XT, x_DT, d_x_DT in zip(d_BXT, x_BDT, d_x_BDT, strict=True):
        torch.mm(weight_XD1.squeeze(2).t(), d_XT, out=d_x_DT)
        d_weight_XD.addmm_(d_XT, x_DT.t())
    return d_x_BDT, d_weight_XD.unsqueeze(2), None if bias_X is None else d_BXT.sum((0, 2))


def may_loop_over_time(x_BDS: Tensor, weight_D1K: Tensor, bias_D: Tensor | None) -> bool:
    """Whether a compiled loop gives the gradients of a depthwise convolution's weight and bias, on one thread."""
    if bias_D is None or torch.get_num_threads() > 1 or not torch.backends.mkldnn.enabled:
        return False
    plain = torch.get_float32_matmul_precision() == "highest" and loops_for(x_BDS, DEPTHWISE) is not None
    return plain and _loop_has_its_sums(*x_BDS.shape, weight_D1K.size(2))


@lru_cache(SHAPES)
def _loop_has_its_sums(batch: int, channels: int, read: int, taps: int) -> bool:
    """Tried with zeros of either sign among the gradients."""
    draws = torch.Generator().manual_seed(0)
    sizes = (batch, channels, read - taps + 1), (batch, channels, read), (channels, 1, taps), (channels,)
    d, x, weight, bias = (torch.randn(size, generator=draws, dtype=torch.float32, device="cpu") for size in sizes)
    d[:, :1], d[:, 1:2] = 0.0, -0.0
    ways = [_over_time_backward(d, x, weight, bias, looped) for looped in (False, True)]
    return all(torch.equal(*(each.view(torch.int32) for each in both)) for both in zip(*ways, strict=True))  # type: ignore[union-attr]


def _over_time_backward(
    d_BDT: Tensor, x_BDS: Tensor, weight_D1K: Tensor, bias_D: Tensor | None, looped: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of input, weight and bias of a depthwise convolution; of the last two by a loop if `looped`."""
    compiled = loops(DEPTHWISE) if looped and d_BDT.is_contiguous() and x_BDS.is_contiguous() else None
    if compiled is None or bias_D is None:
        return _conv_backward(d_BDT, x_BDS, weight_D1K, bias_D, groups=len(weight_D1K))
    d_x_BDS, *_ = torch.ops.aten.convolution_backward(
        d_BDT, x_BDS, weight_D1K, None, *SETTINGS, len(weight_D1K), [True, False, False]
    )
    d_weight_D1K, d_bias_D = unfilled(weight_D1K, *weight_D1K.shape), unfilled(bias_D, *bias_D.shape)
    compiled.gradients(d_weight_D1K.squeeze(1).numpy(), d_bias_D.numpy(), d_BDT.numpy(), x_BDS.numpy())
    return d_x_BDS, d_weight_D1K, d_bias_D


def _conv_backward(
    d_BXT: Tensor, x_BDT: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of input, weight and bias of a convolution over time that pads nothing."""
    sizes, wanted = None if bias is None else [len(bias)], [True, True, bias is not None]
    grads: tuple[Tensor, Tensor, Tensor | None] = torch.ops.aten.convolution_backward(
        d_BXT, x_BDT, weight, sizes, *SETTINGS, groups, wanted
    )
    return grads
