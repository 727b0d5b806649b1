"""Convolutions that see nothing beyond an utterance's end, masked in place and only where masking changes anything.

`MaskedConvSequential` says what is computed: a copy of all for every layer. Here the bits are the same, because
- what is multiplied by a mask of ones is itself, and where no frame is padded there are only ones;
- ReLU leaves the zeros of a mask as they are, so behind it the same mask changes nothing; in backward its gradient is
  zero there, masked or not;
- no backward needs what a convolution returned.

Shapes: B batch, T frames, F features, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nest_ssl.model.encoder.fused.choice import is_watched

Mask = Callable[[Tensor, Tensor], Tensor]
Lengths = Callable[[Tensor, int, int, int], Tensor]


def is_maskable_in_place(layers: nn.Sequential) -> bool:
    """Whether these are convolutions and ReLUs, training, and no hook sees what is between them."""
    plain = all(type(layer) in (nn.Conv2d, nn.ReLU) for layer in layers)
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
        widened: on a CPU, leave depthwise convolutions in float32 where others are in bfloat16, which slows them down.
    """
    mask = _mask_if_needed(x_BCTF, lengths_B, time_mask)
    x_BCTF = x_BCTF if mask is None else x_BCTF * mask
    for layer in layers:
        if widened and isinstance(layer, nn.Conv2d) and layer.groups > 1:
            with torch.autocast("cpu", enabled=False):
                x_BCTF = layer(x_BCTF.float())
        else:
            x_BCTF = layer(x_BCTF)
        if isinstance(layer, nn.Conv2d):
            if layer.stride != (1, 1):
                lengths_B = conv_length(lengths_B, layer.kernel_size[0], layer.stride[0], int(layer.padding[0]))
                mask = _mask_if_needed(x_BCTF, lengths_B, time_mask)
            if mask is not None:
                x_BCTF = x_BCTF.mul_(mask)
    return x_BCTF, lengths_B


def _mask_if_needed(x_BCTF: Tensor, lengths_B: Tensor, time_mask: Mask) -> Tensor | None:
    """None where no frame is padded, as far as that is known without waiting for a GPU."""
    if lengths_B.device.type == "cpu" and bool((lengths_B >= x_BCTF.size(2)).all()):
        return None
    return time_mask(x_BCTF, lengths_B)
