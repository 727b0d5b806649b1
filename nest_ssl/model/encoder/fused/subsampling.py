"""Convolutions that see nothing beyond an utterance's end, masked in place and only where masking changes anything.

`MaskedConvSequential` says what is computed: a copy of all for every layer. Here the bits are the same, because
- what is multiplied by a mask of ones is itself, and where no frame is padded there are only ones;
- ReLU leaves the zeros of a mask as they are, so behind it the same mask changes nothing; in backward its gradient is
  zero there, masked or not;
- no backward needs what a convolution returned, and nothing else the gradient that the layer behind it made.

Shapes: B batch, T frames, F features, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nest_ssl.model.encoder.fused.choice import is_watched

Mask = Callable[[Tensor, Tensor], Tensor]
Lengths = Callable[[Tensor, int, int, int], Tensor]


def is_maskable_in_place(layers: nn.Sequential) -> bool:
    """Whether these are convolutions and ReLUs, training, and no hook sees what is between them."""
    plain = all(type(layer) in (nn.Conv2d, nn.ReLU) for layer in layers) and isinstance(layers[-1], nn.ReLU)
    return plain and torch.is_grad_enabled() and not torch.compiler.is_compiling() and not is_watched(layers)


def masked_in_place(
    layers: nn.Sequential,
    x_BCTF: Tensor,
    lengths_B: Tensor,
    time_mask: Mask,
    conv_length: Lengths,
    widened: bool = False,
) -> tuple[Tensor, Tensor]:
    """What `layers` make of features (B, 1, T, F), and lengths (B).

    Args:
        time_mask: gives, of a tensor and lengths, a factor that is 0 beyond the lengths and else 1.
        conv_length: gives, of lengths, kernel, stride and padding, lengths after a convolution.
        widened: on a CPU, take depthwise convolutions back in float32 where all else is in bfloat16, in which they are
            three times slower.
    """
    mask = _mask_if_needed(x_BCTF, lengths_B, time_mask)
    x_BCTF = x_BCTF if mask is None else x_BCTF * mask
    on_cpu = x_BCTF.device.type == lengths_B.device.type == "cpu"
    for number, layer in enumerate(layers, start=1):
        if on_cpu and isinstance(layer, nn.ReLU) and number < len(layers):  # the last one's gradient may be anybody's
            x_BCTF = ReLUInPlace.apply(x_BCTF)  # type: ignore[no-untyped-call]
        elif widened and isinstance(layer, nn.Conv2d) and layer.groups > 1:
            x_BCTF = Depthwise.apply(x_BCTF, layer.weight, layer.bias, layer.stride, layer.padding)  # type: ignore[no-untyped-call]
        else:
            x_BCTF = layer(x_BCTF)
        if isinstance(layer, nn.Conv2d):
            if layer.stride != (1, 1):
                lengths_B = conv_length(lengths_B, layer.kernel_size[0], layer.stride[0], int(layer.padding[0]))
                mask = _mask_if_needed(x_BCTF, lengths_B, time_mask)
            if mask is not None:
                x_BCTF = MaskInPlace.apply(x_BCTF, lengths_B.tolist()) if on_cpu else x_BCTF.mul_(mask)  # type: ignore[no-untyped-call]
    return x_BCTF, lengths_B


class Depthwise(torch.autograd.Function):
    """`apply(x, weight, bias, stride, padding)`: a depthwise convolution in x's type, with its gradients in float32."""

    @staticmethod
    def forward(
        ctx: Any, x_BCTF: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x_BCTF, weight)
        ctx.settings = stride, padding, (1, 1), False, (0, 0), len(weight)
        return F.conv2d(x_BCTF, weight.to(x_BCTF.dtype), bias.to(x_BCTF.dtype), stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_BCTF: Tensor) -> tuple[Tensor | None, ...]:
        x_BCTF, weight = ctx.saved_tensors
        d_x_BCTF, d_weights, d_biases = torch.empty_like(x_BCTF), [], []
        for utterance in range(len(x_BCTF)):  # of which memory for float32 is used again and again
            one = slice(utterance, utterance + 1)
            d_x_1CTF, d_weight, d_bias = torch.ops.aten.convolution_backward(
                d_BCTF[one].float(), x_BCTF[one].float(), weight, [len(weight)], *ctx.settings, [True] * 3
            )
            d_x_BCTF[one].copy_(d_x_1CTF)
            d_weights.append(d_weight)
            d_biases.append(d_bias)
        return d_x_BCTF, torch.stack(d_weights).sum(0), torch.stack(d_biases).sum(0), None, None


class ReLUInPlace(torch.autograd.Function):
    """ReLU of what a convolution returned, in place; and in place of the gradient, which the layer behind it made."""

    @staticmethod
    def forward(ctx: Any, x_BCTF: Tensor) -> Tensor:
        ctx.mark_dirty(x_BCTF.relu_())
        ctx.save_for_backward(x_BCTF)
        return x_BCTF

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_BCTF: Tensor) -> Tensor:
        (x_BCTF,) = ctx.saved_tensors
        torch.ops.aten.threshold_backward.grad_input(d_BCTF, x_BCTF, 0, grad_input=d_BCTF)
        return d_BCTF


class MaskInPlace(torch.autograd.Function):
    """`apply(x, lengths)`: times a mask in place; times its ones nothing changes, so these are left out."""

    @staticmethod
    def forward(ctx: Any, x_BCTF: Tensor, lengths: list[int]) -> Tensor:
        ctx.mark_dirty(x_BCTF)
        ctx.lengths = lengths
        return _end_(x_BCTF, lengths)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, d_BCTF: Tensor) -> tuple[Tensor, None]:
        return _end_(d_BCTF, ctx.lengths), None


def _end_(x_BCTF: Tensor, lengths: list[int]) -> Tensor:
    """Multiply what is beyond each utterance's end by zero, so that zeros have the signs of a product."""
    for x_CTF, length in zip(x_BCTF, lengths, strict=True):
        x_CTF[:, length:].mul_(0.0)
    return x_BCTF


def _mask_if_needed(x_BCTF: Tensor, lengths_B: Tensor, time_mask: Mask) -> Tensor | None:
    """None where no frame is padded, as far as that is known without waiting for a GPU."""
    if lengths_B.device.type == "cpu" and bool((lengths_B >= x_BCTF.size(2)).all()):
        return None
    return time_mask(x_BCTF, lengths_B)
