"""The convolutional encoders Jasper, QuartzNet and Citrinet: blocks of convolutions, with a residual beside each.

Source: Jasper (arXiv 1904.03288), QuartzNet (arXiv 1910.10261), Citrinet (arXiv 2104.01721); NeMo 3.0.0
`nemo.collections.asr`, `modules.conv_asr.ConvASREncoder` and `parts.submodules.jasper`.

Drawn while it is built: each convolution and linear layer, torch's own, in order; then, in the same order, `init_mode`
for each weight, and of a masked convolution twice.

Shapes: B batch, D channels, T frames.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch import Tensor, nn

from nest_ssl.config.convolutional import ConvBlock, ConvEncoder
from nest_ssl.kernels.dropout import Dropout
from nest_ssl.model.heads import ACTIVATIONS, INITIALISATIONS

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Blocks = tuple[list[Tensor], Tensor]  # what a block is given and gives: outputs to look at, the last one's lengths


class MaskedConv1d(nn.Module):
    """A convolution that sees zeros beyond an utterance's end."""

    def __init__(
        self, channels: int, outputs: int, kernel: int, stride: int = 1, padding: int | tuple[int, int] = 0,
        dilation: int = 1, groups: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pad_layer = None if isinstance(padding, int) else nn.ConstantPad1d(padding, value=0.0)
        inside = padding if isinstance(padding, int) else 0
        self.conv = nn.Conv1d(channels, outputs, kernel, stride, inside, dilation, groups, bias=False)
        padded = 2 * padding if isinstance(padding, int) else sum(padding)
        self.lost = dilation * (kernel - 1) - padded  # frames, at stride 1

    def forward(self, x: Float[Tensor, "B _ T"], lens: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B _ S"], Tensor]:
        x = x * within(x, lens)
        if self.lost or self.conv.stride[0] > 1:
            lens = torch.div(lens - self.lost - 1, self.conv.stride[0], rounding_mode="trunc") + 1
        return self.conv(x if self.pad_layer is None else self.pad_layer(x)), lens


def within(x: Float[Tensor, "B _ T"], lens: Int[Tensor, " B"]) -> Bool[Tensor, "B 1 T"]:
    """Where frames are an utterance's own."""
    return (torch.arange(x.size(2), device=lens.device).unsqueeze(0) < lens.unsqueeze(1)).unsqueeze(1).to(x.device)


class GroupShuffle(nn.Module):
    """Channels of grouped convolutions taken by turns from each group."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        batch, channels, frames = x.shape
        by_group = x.view(batch, self.groups, channels // self.groups, frames)
        return by_group.transpose(1, 2).contiguous().view(batch, channels, frames)


class SqueezeExcite(nn.Module):
    """Channels weighed by their mean over the utterance, or in training over a stretch that is drawn."""

    seq_range: Tensor

    def __init__(self, channels: int, settings: ConvBlock, activation: nn.Module) -> None:
        super().__init__()
        inner = channels // settings.se_reduction_ratio
        self.fc = nn.Sequential(
            nn.Linear(channels, inner, bias=False), activation, nn.Linear(inner, channels, bias=False)
        )
        self.gap = nn.AdaptiveAvgPool1d(1)  # never called, as in NeMo
        self.context_window = settings.se_context_size
        self.register_buffer("seq_range", torch.arange(16), persistent=False)  # NeMo's; what is inside is not used here

    def forward(self, x: Float[Tensor, "B D T"], lengths: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B D T"], Tensor]:
        kind, inside = x.dtype, within(x, lengths)
        with torch.autocast(x.device.type, enabled=False):  # in float32, whatever the precision of training
            if self.fc[0].weight.dtype != torch.float32:
                self.fc.float()
            x = x.float().masked_fill(~inside, 0.0)
            weights_BD1 = torch.sigmoid(self.fc(self.mean(x, inside).transpose(1, -1)).transpose(1, -1))
            return (x * weights_BD1).to(kind), lengths

    def mean(self, x: Float[Tensor, "B D T"], inside: Bool[Tensor, "B 1 T"]) -> Float[Tensor, "B D 1"]:
        frames, window = x.size(2), self.context_window
        if window < 0 or not self.training or frames < window:
            return torch.sum(x, dim=-1, keepdim=True) / inside.sum(dim=-1, keepdim=True).to(x.dtype)
        start = int(torch.randint(0, frames - window, size=[1], dtype=torch.int32)[0])
        counted = inside[:, :, start : start + window].sum(dim=-1, keepdim=True).to(x.dtype)
        return x[:, :, start : start + window].sum(dim=-1, keepdim=True) / (counted + 1e-8)


class JasperBlock(nn.Module):
    """Convolutions one behind another, and a residual of the block's input, or of all before it."""

    def __init__(
        self, channels: int, settings: ConvBlock, of: ConvEncoder, mode: str, panes: list[int], activation: nn.Module
    ) -> None:
        super().__init__()
        self.residual_mode, self.is_dense = mode, settings.residual and bool(panes)
        width, layers = settings.filters, nn.ModuleList()
        for number in range(settings.repeat):
            is_last = number == settings.repeat - 1
            stride = settings.stride[0] if is_last or not settings.stride_last else 1
            layers.extend(self.convolution(channels if number == 0 else width, settings, of, stride))
            if not is_last:
                layers.extend([activation, Dropout(settings.dropout)])
        if settings.se:
            layers.append(SqueezeExcite(width, settings, activation))
        self.mconv, self.res = layers, None
        if settings.residual:
            stride = settings.stride[0] if mode == "stride_add" else 1
            self.res = nn.ModuleList(
                nn.ModuleList([self.one(of, pane, width, 1, stride), self.norm(width, of)])
                for pane in panes or [channels]
            )
        self.mout = nn.Sequential(activation, Dropout(settings.dropout))

    def convolution(self, channels: int, settings: ConvBlock, of: ConvEncoder, stride: int) -> list[nn.Module]:
        """A convolution, or a depthwise and a pointwise one, with their norm."""
        width, groups = settings.filters, settings.groups
        shape = settings.kernel_size, stride, settings.padding, settings.dilation[0]
        if settings.separable:
            layers = [
                self.one(of, channels, channels, *shape, channels),
                self.one(of, channels, width, 1, groups=groups),
            ]
        else:
            layers = [self.one(of, channels, width, *shape, groups)]
        return [*layers, self.norm(width, of), *([GroupShuffle(groups)] if groups > 1 else [])]

    def one(
        self, of: ConvEncoder, channels: int, outputs: int, kernel: int, stride: int = 1,
        padding: int | tuple[int, int] = 0, dilation: int = 1, groups: int = 1,
    ) -> nn.Module:  # fmt: skip
        if of.conv_mask:
            return MaskedConv1d(channels, outputs, kernel, stride, padding, dilation, groups)
        assert isinstance(padding, int)
        return nn.Conv1d(channels, outputs, kernel, stride, padding, dilation, groups, bias=False)

    def norm(self, width: int, of: ConvEncoder) -> nn.Module:
        if of.normalization_mode == "batch":
            return nn.BatchNorm1d(width, eps=1e-3, momentum=0.1)
        groups = {"instance": width, "layer": 1, "group": width if of.norm_groups == -1 else of.norm_groups}
        return nn.GroupNorm(groups[of.normalization_mode], width)

    def forward(self, input_: Blocks) -> Blocks:
        before, lengths = input_
        out, out_lengths = before[-1], lengths
        for layer in self.mconv:
            if isinstance(layer, MaskedConv1d | SqueezeExcite):
                out, out_lengths = layer(out, out_lengths)
            else:
                out = layer(out)
        for number, layers in enumerate(self.res or ()):
            residual = before[number]
            for layer in layers:  # type: ignore[attr-defined]
                residual = layer(residual, lengths)[0] if isinstance(layer, MaskedConv1d) else layer(residual)
            out = torch.max(out, residual) if self.residual_mode == "max" else out + residual
        out = self.mout(out)
        return ([*before, out] if self.is_dense else [out]), out_lengths


class ConvASREncoder(nn.Module):
    """Blocks one behind another."""

    seq_range: Tensor

    def __init__(self, settings: ConvEncoder) -> None:
        super().__init__()
        activation = ACTIVATIONS[settings.activation]()  # one module for all, as in NeMo
        if hasattr(activation, "inplace"):
            activation.inplace = True  # type: ignore[assignment]
        channels, panes, mode, blocks = settings.feat_in, [], settings.residual_mode, []
        for each in settings.jasper:
            mode = each.residual_mode or mode  # it stays for the blocks behind
            if each.residual_dense:
                panes.append(channels)
            blocks.append(
                JasperBlock(channels, each, settings, mode, list(panes) if each.residual_dense else [], activation)
            )
            channels = each.filters
        self.encoder = nn.Sequential(*blocks)
        self.max_audio_length: int | float = 0

        def draw(module: nn.Module) -> None:
            if isinstance(module, nn.Conv1d | nn.Linear | MaskedConv1d):
                weight = module.conv.weight if isinstance(module, MaskedConv1d) else module.weight
                INITIALISATIONS[settings.init_mode](weight)

        self.apply(draw)

    def forward(
        self, audio_signal: Float[Tensor, "B F T"], length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B D S"], Int[Tensor, " B"]]:
        """Features (B, F, T) and lengths (B) to encodings (B, D, S) and lengths."""
        self._extend_range(audio_signal.size(2), audio_signal.device)
        outputs, length = self.encoder(([audio_signal], length))
        return outputs[-1], length

    def _extend_range(self, frames: int, device: torch.device) -> None:
        """Keep NeMo's buffers, of as many numbers: nothing here reads them."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            longest = torch.tensor([frames], dtype=torch.float32, device=device)
            torch.distributed.all_reduce(longest, op=torch.distributed.ReduceOp.MAX)
            frames = int(longest.item())
        if frames > self.max_audio_length:
            self.max_audio_length = frames * 2 if frames < 5000 else frames * 1.5 if frames < 10000 else frames
            numbers = torch.arange(0, self.max_audio_length, device=device)
            for module in self.modules():
                if isinstance(module, ConvASREncoder | SqueezeExcite):
                    module.register_buffer("seq_range", numbers, persistent=False)
