"""Convolutions that see nothing beyond an utterance's end, masked in place and only where masking changes anything.

`MaskedConvSequential` says what is computed: a copy of all for every layer. Here the bits are the same, because
- what is multiplied by a mask of ones is itself, and where no frame is padded there are only ones;
- ReLU leaves the zeros of a mask as they are, so behind it the same mask changes nothing; in backward its gradient is
  zero there, masked or not;
- no backward needs what a convolution returned, and nothing else the gradient that the layer behind it made;
- of the first convolution, and of a depthwise one, no channel reads another one's, so that they can be computed one
  after another: in pieces that caches hold, and in memory that is used again, where the whole is hundreds of megabytes
  of fresh memory, several times.

Shapes: B batch, T frames, F features, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.kernels.dropout import unfilled
from nest_ssl.kernels.once import once_differentiable
from nest_ssl.model.encoder.fused.choice import Methods, are_operators_seen, is_watched, shares_gradients

CHANNELS = 16  # at a time: as many as a kernel of oneDNN takes together, so that its sums stay as they are
FEWEST = 1 << 18  # values of features: with fewer, caches hold enough of the whole, and Python takes what parts save
METHODS = Methods(nn.Conv2d, nn.ReLU)
Mask = Callable[[Tensor, Tensor], Tensor]
Lengths = Callable[[Tensor, int, int, int], Tensor]


def is_maskable_in_place(layers: nn.Sequential) -> bool:
    """Whether these are torch's convolutions and ReLUs, training, and no hook sees what is between them."""
    plain = all(type(layer) in (nn.Conv2d, nn.ReLU) for layer in layers) and isinstance(layers[-1], nn.ReLU)
    eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and eager and METHODS.are_as_imported() and not (is_watched(layers) or are_operators_seen())


def masked_in_place(
    layers: nn.Sequential,
    x_BCTF: Tensor,
    lengths_B: Tensor,
    time_mask: Mask,
    conv_length: Lengths,
    widened: bool = False,
    alone: bool = True,
) -> tuple[Tensor, Tensor]:
    """What `layers` make of features (B, 1, T, F), and lengths (B).

    Args:
        time_mask: gives, of a tensor and lengths, a factor that is 0 beyond the lengths and else 1.
        conv_length: gives, of lengths, kernel, stride and padding, lengths after a convolution.
        widened: on a CPU, take depthwise convolutions back in float32 where all else is in bfloat16, in which they are
            three times slower.
        alone: each channel lies by itself in memory, so that some can be computed at a time.
    """
    mask = _mask_if_needed(x_BCTF, lengths_B, time_mask)
    x_BCTF = x_BCTF if mask is None else x_BCTF * mask
    on_cpu = x_BCTF.device.type == lengths_B.device.type == "cpu"
    in_parts = on_cpu and alone and x_BCTF.numel() >= FEWEST and may_go_by_channels(layers, x_BCTF)
    for number, layer in enumerate(layers, start=1):
        if in_parts and number < 3:  # with the depthwise convolution behind them
            continue
        if in_parts and isinstance(layer, nn.Conv2d) and layer.groups > 1:
            begun: list[Any] = [layers[0]] if number == 3 else []
            for conv in begun:
                lengths_B = conv_length(lengths_B, conv.kernel_size[0], conv.stride[0], int(conv.padding[0]))
            weights = [parameter for conv in (*begun, layer) for parameter in (conv.weight, conv.bias)]
            x_BCTF = ByChannels.apply(x_BCTF, lengths_B.tolist(), (layer.stride, layer.padding), *weights)  # type: ignore[no-untyped-call]
        elif on_cpu and isinstance(layer, nn.ReLU) and number < len(layers):  # the last one's gradient may be anybody's
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


def may_go_by_channels(layers: nn.Sequential, x_B1TF: Tensor) -> bool:
    """Whether `ByChannels` is what the first three layers compute, and depthwise convolutions behind them, to the last
    bit. On one thread: several share the sums among them by the number of channels."""
    if len(layers) < 3 or x_B1TF.requires_grad or x_B1TF.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_num_threads() > 1 or not torch.backends.mkldnn.enabled or shares_gradients():
        return False
    convs = [each for each in layers if isinstance(each, nn.Conv2d) and each.kernel_size != (1, 1)]
    first, *others = convs
    depthwise = first is layers[0] and first.groups == 1 and others[:1] == [layers[2]] and type(layers[1]) is nn.ReLU
    settings = [(each.stride, each.padding, each.dilation, each.padding_mode) for each in convs]
    same = all(each.groups == len(first.weight) for each in others) and set(settings) == {settings[0]}
    same = same and settings[0][2:] == ((1, 1), "zeros")
    trained = all(each.bias is not None for each in convs) and all(p.requires_grad for p in layers.parameters())
    # Strides say more than `is_contiguous`: a kernel of one channel is so either way, and read by its strides.
    laid_out = all(p.stride() == torch.empty(p.shape, device="meta").stride() for p in layers.parameters())
    return depthwise and same and trained and laid_out and len(first.weight) % CHANNELS == 0


class ByChannels(torch.autograd.Function):
    """`apply(x, lengths behind the first convolution, stride and padding, weights and biases)`: a depthwise
    convolution, some channels of an utterance at a time; with four weights the first convolution, a mask and ReLU
    before it, which are computed again in backward."""

    @staticmethod
    def forward(ctx: Any, x_BCTF: Tensor, lengths: list[int], settings: Any, *weights: Tensor) -> Tensor:
        x_BCTF = x_BCTF.contiguous()  # once, where each part's convolution would: features come with time innermost
        ctx.save_for_backward(x_BCTF, *weights)
        ctx.lengths, ctx.settings = lengths, settings
        *begun, weight, bias = weights
        stride, padding = settings
        out_BCTF: Tensor | None = None
        for part in _parts(weight):
            for number, length in enumerate(lengths):
                read_1CTF = _read(x_BCTF[number : number + 1], part, length, begun, settings)
                made_1CTF = F.conv2d(read_1CTF, weight[part], bias[part], stride, padding, groups=CHANNELS)
                if out_BCTF is None:
                    out_BCTF = unfilled(made_1CTF, len(x_BCTF), len(weight), *made_1CTF.shape[2:])
                out_BCTF[number, part] = made_1CTF[0]
        assert out_BCTF is not None
        return out_BCTF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BCTF: Tensor) -> tuple[Tensor | None, ...]:
        x_BCTF, *begun, weight, _ = ctx.saved_tensors
        settings, back = (*ctx.settings, (1, 1), False, (0, 0)), torch.ops.aten.convolution_backward
        d_x_BCTF = None if begun else unfilled(x_BCTF, *x_BCTF.shape)
        found: list[list[Tensor]] = []
        between: Tensor | None = None  # what the depthwise convolution read, and then its gradient
        for part in _parts(weight):
            d_part, size = d_BCTF[:, part].contiguous(), [CHANNELS]
            for number, length in enumerate(ctx.lengths):
                read_1CTF = _read(x_BCTF[number : number + 1], part, length, begun, ctx.settings)
                if between is None:
                    between = unfilled(read_1CTF, len(x_BCTF), *read_1CTF.shape[1:])
                between[number] = read_1CTF[0]
            assert between is not None  # all of the batch, as sums over it need it
            _, *deep = back(d_part, between, weight[part], size, *settings, CHANNELS, [False, True, True])
            for number, into_CTF in enumerate(between):
                given, read = d_part[number : number + 1], between[number : number + 1]
                d_1CTF, *_ = back(given, read, weight[part], None, *settings, CHANNELS, [True, False, False])
                if d_x_BCTF is None:
                    torch.ops.aten.threshold_backward.grad_input(d_1CTF[0], into_CTF, 0, grad_input=into_CTF)
                else:
                    d_x_BCTF[number, part] = d_1CTF[0]
            first: list[Tensor] = []
            if begun:
                _end_(between, ctx.lengths)
                _, *first = back(between, x_BCTF, begun[0][part], size, *settings, 1, [False, True, True])
            found.append([*first, *deep])
        return d_x_BCTF, None, None, *(torch.cat(each) for each in zip(*found, strict=True))


def _parts(weight: Tensor) -> list[slice]:
    return [slice(first, first + CHANNELS) for first in range(0, len(weight), CHANNELS)]


def _read(x_1CTF: Tensor, part: slice, length: int, begun: list[Tensor], settings: Any) -> Tensor:
    """What some channels of a depthwise convolution read of an utterance."""
    if not begun:
        return x_1CTF[:, part]
    weight, bias = begun
    return _end_(F.conv2d(x_1CTF, weight[part], bias[part], *settings), [length]).relu_()


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
    @once_differentiable
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
    @once_differentiable
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
    @once_differentiable
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
