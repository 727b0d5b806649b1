"""`numerics: fast`: the same model, parameters, draws and checkpoints, rounded otherwise and in less time.

- Decoder and loss of masked tokens only (`model/masked_tokens.py`), the softmax in float32.
- The optimizer's own fused kernel, one for all parameters.
- On a CPU: subsampling with its channels side by side in memory, and its depthwise convolutions always in float32.
- On a GPU: TF32.
- Fresh memory is not filled (`base.determinism.allow_fast_kernels`); kernels stay repeatable.

A step that is recorded takes the open way through decoder and loss, as any step that somebody looks into: recordings of
both modes have the same calls, and `nest-ssl explain` says of them what rounding is. Weights after a recorded step
therefore differ by rounding from those of a run that records nothing, or other steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nest_ssl.base.determinism import allow_fast_kernels
from nest_ssl.config.schema import BEST_RQ, NEST
from nest_ssl.model import ahead, counted_tokens
from nest_ssl.model.encoder.fused.choice import Methods
from nest_ssl.model.encoder.subsampling import MaskedConvSequential
from nest_ssl.model.masked_tokens import masked_token_loss
from nest_ssl.train.module import METHODS, PARTS_OF_A_STEP, UNCHANGED, BestRqModule, NestModule


class FastNestModule(NestModule):
    """`NestModule`, faster. torch's flags are set for the whole process.

    Args:
        others: as of `NestModule`.
    """

    numerics = "fast"

    def __init__(self, *others: Any, **named: Any) -> None:
        super().__init__(*others, **named)
        allow_fast_kernels()
        encoder: Any = self.encoder
        convolutions = getattr(encoder.pre_encode, "conv", None)
        if isinstance(convolutions, MaskedConvSequential):
            convolutions.channels_last = True

    def configure_optimizers(self) -> Any:
        configured = super().configure_optimizers()
        fuse(configured[0][0] if isinstance(configured, tuple) else configured)
        return configured

    def _loss(self, batch: Any) -> Tensor:
        plain = ahead.METHODS.are_as_imported(self.quantizer, *self.loss.modules())
        if self.is_open() or not plain or not counted_tokens.are_unchanged(self.decoder, self.loss):
            return super()._loss(batch)
        clean_BFT, heard_BFT, length_B = self.heard(batch)
        late = ahead.LateTokens(self.quantizer, clean_BFT)
        heard_BFT, masks_BFT = self.mask_processor(input_feats=heard_BFT, input_lengths=length_B)
        settings = self.loss.mlm_loss
        by_token = masks_BFT[:, 0].reshape(len(masks_BFT), -1, settings.combine_time_steps)  # whole frames are masked
        masked = ahead.Places(by_token.mean(-1) > settings.mask_threshold)
        encoded_BDS, _ = (self.graphed or self.encoder)(audio_signal=heard_BFT, length=length_B)
        return masked_token_loss(self.decoder, self.loss, encoded_BDS, late.look(), masked.look())


class FastBestRqModule(FastNestModule, BestRqModule):
    """The same of the model without noise."""


FAST_MODULES: dict[str, type[FastNestModule]] = {NEST: FastNestModule, BEST_RQ: FastBestRqModule}
UNCHANGED.update(FAST_MODULES.values())
METHODS.append(Methods(*FAST_MODULES.values(), names=PARTS_OF_A_STEP))


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Have `optimizer` make its steps with its fused kernel, unless its settings name another.

    Its groups say so only while it steps, which in Lightning is forward and backward too, and its state never: a
    checkpoint, also of a step that was interrupted, holds what it was configured with.
    """
    fused: list[dict[str, Any]] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        after()  # of a step that was interrupted
        other = ("foreach", "capturable", "differentiable")
        free = (group for group in optimizer.param_groups if group.get("fused", False) is None)
        fused[:] = [group for group in free if not any(group.get(name) for name in other)]
        for group in fused:
            group["fused"] = True
            for parameter in group["params"]:
                count = optimizer.state.get(parameter, {}).get("step")
                if isinstance(count, Tensor) and count.device != parameter.device:  # from a checkpoint
                    optimizer.state[parameter]["step"] = count.to(parameter.device)

    def after(*_: Any) -> None:
        for group in fused:
            group["fused"] = None

    def as_configured(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        for own, group in zip(optimizer.param_groups, state["param_groups"], strict=True):
            if any(own is each for each in fused):
                group["fused"] = None

    optimizer.register_state_dict_post_hook(as_configured)
    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
