"""Convolutional subsampling: features in, one vector of the model's width for every 2^n frames out.

Source: FastConformer (arXiv 2305.05084, section 2.1) for `dw_striding`; NeMo 3.0.0
`nemo.collections.asr.parts.submodules.subsampling` (before 2.5 frames beyond an utterance are not masked, and there are
`vggnet` and convolutions over time alone).

Shapes: B batch, T frames and F features (S and G of them after the strided convolutions), C channels, D model width.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Encoder
from nest_ssl.model.encoder.fused.subsampling import is_maskable_in_place, masked_in_place
from nest_ssl.releases import GENERATIONS, NEWEST, Generation

if TYPE_CHECKING:
    from jaxtyping import Float, Int

KERNEL, STRIDE, PADDING = 3, 2, 1
MAX_ELEMENTS = 2**31  # a tensor with more cannot be indexed by some kernels
LENGTH_DTYPES = {"int32": torch.int32, "int64": torch.int64}
Length = TypeVar("Length", int, Tensor)


class ConvSubsampling(nn.Module):
    """Strided convolutions, then a linear layer over channels and the features that are left.

    Raises:
        UserError: in `forward`, a batch too large that cannot be split.
    """

    def __init__(self, settings: Encoder, differences: Generation = GENERATIONS[NEWEST], in_place: bool = True) -> None:
        super().__init__()
        self.conv_channels, self.chunking_factor = settings.conv_channels, settings.subsampling_conv_chunking_factor
        stages = int(math.log2(settings.subsampling_factor))
        activation = nn.ReLU(inplace=in_place)  # one module for all stages, as in NeMo
        layers = list(_layers(settings.subsampling, stages, self.conv_channels, activation))  # drawn before `out`
        self.stages, self.pools = stages, settings.subsampling == "vggnet"
        features = self.subsampled(settings.feat_in)
        self.out = nn.Linear(self.conv_channels * features, settings.d_model)
        self.conv = MaskedConvSequential(*layers) if differences.subsampling_mask else nn.Sequential(*layers)
        self.length_dtype = LENGTH_DTYPES[differences.subsampled_length]

    def subsampled(self, length: Length) -> Length:
        """What all stages leave of so many frames or features."""
        for _ in range(self.stages):
            length = -(-length // STRIDE) if self.pools else conv_length(length, KERNEL, STRIDE, PADDING)
        return length

    def forward(
        self, x: Float[Tensor, "B T F"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"]]:
        """Features (B, T, F) and lengths (B) to vectors (B, S, D) and lengths."""
        size = self.part_size(x)
        if size == x.size(0):
            x_BCTF, lengths = self.convolve(x, lengths)
        else:
            pairs = zip(torch.split(x, size), torch.split(lengths, size), strict=True)
            done = [self.convolve(*pair) for pair in pairs]
            x_BCTF, lengths = torch.cat([x for x, _ in done]), torch.cat([n for _, n in done])
        batch, _, frames, _ = x_BCTF.shape
        return self.out(x_BCTF.transpose(1, 2).reshape(batch, frames, -1)), lengths.to(self.length_dtype)

    def convolve(
        self, x_BTF: Float[Tensor, "B T F"], lengths_B: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C S G"], Int[Tensor, " B"]]:
        """The convolutions of one part, (B, C, S, G), and lengths."""
        if isinstance(self.conv, MaskedConvSequential):
            masked: tuple[Tensor, Tensor] = self.conv(x_BTF, lengths_B)
            return masked
        return self.conv(x_BTF.unsqueeze(1)), self.subsampled(lengths_B)

    def part_size(self, x_BTF: Float[Tensor, "B T F"]) -> int:
        """Utterances to convolve at once: so few that the first convolution's output stays below 2^31 elements; all,
        if the factor is -1."""
        batch, parts = x_BTF.size(0), self.chunking_factor
        if parts == -1:
            return batch
        limit = MAX_ELEMENTS / self.conv_channels * STRIDE * STRIDE
        if parts <= 1:
            parts = 2 ** math.ceil(math.log2(x_BTF.numel() / limit)) if x_BTF.numel() > limit else 1
        if parts > 1 and batch < max(2, parts):
            raise UserError(
                f"a batch of {batch} cannot be split into {parts} parts",
                "model.encoder.subsampling_conv_chunking_factor",
                "Use shorter audio (max_duration), or a smaller factor.",
            )
        return batch // parts


class StackingSubsampling(nn.Module):
    """Frames side by side, then a linear layer; with `stacking_norm` each frame is normed before.

    As NeMo counts, the frames that fill up the last stack count for every utterance of the batch.
    """

    def __init__(self, settings: Encoder) -> None:
        super().__init__()
        self.factor = settings.subsampling_factor
        self.proj_out = nn.Linear(self.factor * settings.feat_in, settings.d_model)
        self.pre_norm = nn.LayerNorm(settings.feat_in) if settings.subsampling == "stacking_norm" else None

    def forward(
        self, x: Float[Tensor, "B T F"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B S D"], Int[Tensor, " B"]]:
        """Features (B, T, F) and lengths (B) to vectors (B, S, D) and lengths."""
        missing = -x.size(1) % self.factor
        x_BTF = F.pad(x, (0, 0, 0, missing))
        if self.pre_norm is not None:
            x_BTF = self.pre_norm(x_BTF)
        stacked = x_BTF.reshape(x_BTF.size(0), x_BTF.size(1) // self.factor, -1)
        return self.proj_out(stacked), (lengths + missing) // self.factor


class MaskedConvSequential(nn.Sequential):
    """Convolutions that see nothing beyond the end of an utterance: frames past it are zeroed before every layer.

    Attributes:
        channels_last: lay channels side by side in memory on a CPU, where no hook looks: other sums, in half the time.
    """

    channels_last = False

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "B T F"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B C S G"], Int[Tensor, " B"]]:
        """Features (B, T, F) and lengths (B) to (B, C, S, G) and lengths."""
        x_BCTF = x.unsqueeze(1)
        if is_maskable_in_place(self):
            otherwise = self.channels_last and x.device.type == "cpu"
            if otherwise:
                x_BCTF = x.contiguous().unsqueeze(-1).permute(0, 3, 1, 2)
            widened = otherwise and torch.is_autocast_enabled("cpu")
            return masked_in_place(self, x_BCTF, lengths, _time_mask, conv_length, widened, not otherwise)
        mask_B1T1 = _time_mask(x_BCTF, lengths)
        for layer in self:
            x_BCTF = layer(x_BCTF * mask_B1T1)
            if isinstance(layer, nn.Conv2d) and layer.stride != (1, 1):
                lengths = conv_length(lengths, layer.kernel_size[0], layer.stride[0], PADDING)
                mask_B1T1 = _time_mask(x_BCTF, lengths)
        return x_BCTF * mask_B1T1, lengths


def conv_length(length: Length, kernel: int, stride: int, padding: int) -> Length:
    """Output frames of a convolution over so many frames."""
    return (length + 2 * padding - kernel) // stride + 1


def _time_mask(x_BCTF: Float[Tensor, "B C T F"], lengths_B: Int[Tensor, " B"]) -> Tensor:
    valid_BT = torch.arange(x_BCTF.size(2), device=x_BCTF.device) < lengths_B.unsqueeze(1)
    return valid_BT[:, None, :, None].to(x_BCTF.dtype)


def _layers(subsampling: str | None, stages: int, channels: int, activation: nn.Module) -> Iterator[nn.Module]:
    """One strided convolution and ReLU a stage; `dw_striding` splits all but the first into depthwise and pointwise,
    `vggnet` has two that are not strided, and a maximum over 2 x 2 places."""
    if subsampling == "vggnet":
        for stage in range(stages):
            for inputs in (channels if stage else 1, channels):
                yield nn.Conv2d(inputs, channels, KERNEL, padding=PADDING)
                yield activation
            yield nn.MaxPool2d(STRIDE, STRIDE, ceil_mode=True)
        return
    yield nn.Conv2d(1, channels, KERNEL, STRIDE, PADDING)
    yield activation
    for _ in range(stages - 1):
        if subsampling == "dw_striding":
            yield nn.Conv2d(channels, channels, KERNEL, STRIDE, PADDING, groups=channels)
            yield nn.Conv2d(channels, channels, kernel_size=1)
        else:
            yield nn.Conv2d(channels, channels, KERNEL, STRIDE, PADDING)
        yield activation
