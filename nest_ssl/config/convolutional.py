"""The settings of convolutional encoders: Jasper, QuartzNet, Citrinet.

Source: the constructors of NeMo 3.0.0, `nemo.collections.asr.modules.conv_asr` and `.parts.submodules.jasper`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Len
from pydantic import BeforeValidator, model_validator

from nest_ssl.config.losses import InitMode
from nest_ssl.config.section import Number, Positive, Probability, Section, Unfit, Whole, read, silent

One = Annotated[list[Positive], Len(1, 1)]


class ConvBlock(Section):
    """A block of `jasper`."""

    ACCEPTED = silent("se_interpolation_mode")

    filters: Positive  # channels
    repeat: Positive  # convolutions
    kernel: One
    stride: One
    dilation: One
    dropout: Probability
    residual: bool
    residual_dense: bool = False  # a residual of every block before
    residual_mode: Literal["add", "stride_add", "max"] | None = None  # null: as the block before
    separable: bool = False  # a depthwise and a pointwise convolution
    groups: Positive = 1
    heads: Literal[-1] = -1
    se: bool = False  # squeeze and excitation
    se_reduction_ratio: Positive = 8
    se_context_size: int = -1  # frames; -1: all
    kernel_size_factor: Annotated[Number, Gt(0)] = 1.0
    stride_last: bool = False  # only the last convolution has the stride
    future_context: int = -1  # frames that a convolution sees to the right; -1: half of its kernel

    @model_validator(mode="after")
    def _one_of_both(self) -> ConvBlock:
        if self.stride[0] > 1 and self.dilation[0] > 1:
            raise Unfit("stride and dilation at once", f"dilation={self.dilation}", "Set one of them to [1].")
        return self

    @property
    def kernel_size(self) -> int:
        """Scaled, and odd."""
        size = max(int(self.kernel[0] * float(self.kernel_size_factor)), 1)
        return size + (size % 2 == 0)

    @property
    def padding(self) -> int | tuple[int, int]:
        """Frames on both sides, or to the left and to the right."""
        kernel, dilation, future = self.kernel_size, self.dilation[0], self.future_context
        if future < 0 or kernel <= future:
            return dilation * (kernel - 1) // 2
        left = kernel - 1 - future if dilation == 1 else dilation * kernel - 1 - dilation * future
        return left, dilation * future

    @property
    def frames(self) -> int:
        """Of its input, for one of its output."""
        return int(self.stride[0] if self.stride_last else self.stride[0] ** self.repeat)


def _blocks(value: Any) -> Any:
    """The blocks, read.

    Raises:
        Unfit: no list of them.
    """
    if not isinstance(value, list) or not value:
        raise Unfit("no blocks", "jasper", "Give a list of them.")
    return [read(ConvBlock, each, f"model.encoder.jasper[{number}]") for number, each in enumerate(value)]


class ConvEncoder(Section):
    """Jasper, QuartzNet or Citrinet."""

    TARGETS = ("ConvASREncoder",)
    REFUSED: ClassVar = {"quantize": "NeMo stops at it, too, without pytorch-quantization. Leave it out."}

    jasper: Annotated[list[ConvBlock], BeforeValidator(_blocks)]
    activation: Literal["hardtanh", "relu", "selu", "swish", "silu", "gelu"]
    feat_in: Positive
    normalization_mode: Literal["batch", "layer", "group", "instance"] = "batch"
    norm_groups: Whole | Literal[-1] = -1
    residual_mode: Literal["add", "stride_add", "max"] = "add"
    conv_mask: bool = True  # zeros beyond an utterance's end before every convolution
    frame_splicing: Literal[1] = 1
    init_mode: InitMode = "xavier_uniform"

    reduces: ClassVar[bool] = False
    reduction_factor: ClassVar[int] = 1
    reduction_position: ClassVar[int | None] = None
    unified: ClassVar[list[str]] = []

    @model_validator(mode="after")
    def _groups_fit(self) -> ConvEncoder:
        channels = self.feat_in
        for number, block in enumerate(self.jasper):
            of = f"NeMo stops at it, too: channels of jasper[{number}]"
            inputs = (channels, block.filters) if block.repeat > 1 else (channels,)
            if any(width % block.groups for width in (*inputs, block.filters)):
                what = f"{of}, {' and '.join(map(str, inputs))} to {block.filters}, are no multiple of its groups"
                raise Unfit(what, f"jasper[{number}].groups={block.groups}", "Give a divisor, or 1.")
            norms = block.filters if self.norm_groups == -1 else self.norm_groups
            if self.normalization_mode == "group" and (norms == 0 or block.filters % norms):
                what = f"{of}, {block.filters}, are no multiple of it"
                raise Unfit(what, f"norm_groups={self.norm_groups}", "Give a divisor, or -1 for a group of each.")
            channels = block.filters
        return self

    @model_validator(mode="after")
    def _pads_alike(self) -> ConvEncoder:
        for number, block in enumerate(self.jasper):
            if not self.conv_mask and not isinstance(block.padding, int):
                what, key = (
                    "NeMo stops at it, too: without conv_mask padding is the same on both sides",
                    "future_context",
                )
                raise Unfit(what, f"jasper[{number}].{key}", "Set conv_mask to true.")
        return self

    @property
    def feat_out(self) -> int:
        """Channels of the last block."""
        return self.jasper[-1].filters

    @property
    def d_model(self) -> int:
        """The same."""
        return self.feat_out

    @property
    def n_layers(self) -> int:
        """Layers whose outputs other losses may look at: none."""
        return 0

    @property
    def frames_in_vector(self) -> int:
        """Frames for one vector of the output."""
        return math.prod(block.frames for block in self.jasper)
