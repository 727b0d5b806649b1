"""How far attention may see: to all frames, to some to the left and right, or to chunks of frames.

Source: Transformer-XL and streaming Conformers (arXiv 2312.17279, section 3, for chunks and for several contexts in one
training); NeMo 3.0.0 `nemo.collections.asr.modules.conformer_encoder`. Its style `chunked_limited_with_rc` trains there
with unlimited context, whatever sizes are given, and so it does here.

Shapes: B batch, T time.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nest_ssl.config.parts import Encoder

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

UNLIMITED = -1
ALL_CHUNKS = 10_000  # as many chunks to the left as unlimited context has in NeMo


class AttentionContext:
    """The contexts of an encoder, of which training draws one for each batch if there are several."""

    def __init__(self, settings: Encoder) -> None:
        self.sizes, self.weights = settings.contexts, settings.context_weights
        self._visible = VISIBLE[settings.att_context_style]
        self._masks_attention = settings.self_attention_model != "rel_pos_local_attn"  # that limits itself

    def draw(self, training: bool) -> list[int]:
        """The size for a batch: in training one by Python's generator, if there is a choice, else the first."""
        return (
            random.choices(self.sizes, weights=self.weights)[0] if training and len(self.sizes) > 1 else self.sizes[0]
        )

    def masks(
        self, size: list[int], x_BTD: Float[Tensor, "B T D"], length: Int[Tensor, " B"]
    ) -> tuple[Bool[Tensor, "B T"], Bool[Tensor, "B T T"] | None]:
        """What may not be seen, true there: frames beyond the utterance (B, T), and pairs of frames (B, T, T)."""
        valid_BT = torch.arange(x_BTD.size(1), device=x_BTD.device) < length.unsqueeze(1)
        if not self._masks_attention:
            return ~valid_BT, None
        att_mask = ~(valid_BT.unsqueeze(2) & valid_BT.unsqueeze(1))
        if any(frames != UNLIMITED for frames in size):
            frames_T = torch.arange(valid_BT.size(1), device=valid_BT.device)
            att_mask = att_mask | ~self._visible(frames_T.unsqueeze(1), frames_T.unsqueeze(0), *size)
        return ~valid_BT, att_mask


def within_frames(
    query_T1: Int[Tensor, "T 1"], key_1T: Int[Tensor, "1 T"], left: int, right: int
) -> Bool[Tensor, "T T"]:
    """Keys at most `left` frames before the query and `right` behind it; a negative number: any."""
    distance_TT = key_1T - query_T1
    visible_TT = torch.ones_like(distance_TT, dtype=torch.bool)
    if left >= 0:
        visible_TT = visible_TT & (distance_TT >= -left)  # in place it could not be written as ONNX
    if right >= 0:
        visible_TT = visible_TT & (distance_TT <= right)
    return visible_TT


def within_chunks(
    query_T1: Int[Tensor, "T 1"], key_1T: Int[Tensor, "1 T"], left: int, right: int
) -> Bool[Tensor, "T T"]:
    """Keys in the query's chunk of `right` + 1 frames, and in as many chunks before it as `left` frames fill."""
    if right == UNLIMITED:
        return within_frames(query_T1, key_1T, left, right)
    chunk = right + 1
    behind_TT = query_T1 // chunk - key_1T // chunk
    return (behind_TT >= 0) & (behind_TT <= (left // chunk if left >= 0 else ALL_CHUNKS))


VISIBLE: dict[str, Callable[..., Tensor]] = {
    "regular": within_frames,
    "chunked_limited": within_chunks,
    "chunked_limited_with_rc": within_frames,  # its size is unlimited
}
