"""Masked blocks as NeMo 3.0 draws them: for the whole batch at once, with torch on the features' device.

Source: NeMo 3.0.0 `nemo.collections.asr.modules.ssl_modules.masking`.

Shapes: B batch, T frames, P blocks in an utterance.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


def overlapping_blocks(
    lengths_B: Int[Tensor, " B"], frames: int, block_size: int, mask_prob: float
) -> Bool[Tensor, "B T"]:
    """A mask (B, T): a block starts at a frame with `mask_prob`, if a whole one fits before the utterance ends."""
    fits_BT = torch.arange(frames, device=lengths_B.device) + block_size <= lengths_B.unsqueeze(1)
    starts_BT = (torch.rand(len(lengths_B), frames, device=lengths_B.device) < mask_prob) & fits_BT
    begun_BT = starts_BT.cumsum(1)
    ended_BT = F.pad(begun_BT, (block_size, 0))[:, :frames]
    return begun_BT > ended_BT


def separate_blocks(
    lengths_B: Int[Tensor, " B"], frames: int, block_size: int, mask_prob: float
) -> Bool[Tensor, "B T"]:
    """A mask (B, T) of `mask_prob` of each utterance, rounded up to whole blocks, on a grid with one random offset.

    Utterances too short for their blocks get smaller ones.
    """
    batch, device = len(lengths_B), lengths_B.device
    count_B = torch.ceil(lengths_B * mask_prob / block_size).long()
    too_short_B = (count_B + 1) * block_size > lengths_B
    size_B = torch.where(too_short_B, lengths_B // (count_B + 1), block_size).clamp_min(1)
    slots_B = (lengths_B // size_B - 1).clamp_min(0)  # one less than would fit: room for the offset
    count_B = torch.minimum(count_B, slots_B)

    time_T = torch.arange(frames, device=device)
    scores_BT = torch.rand(batch, frames, device=device).masked_fill(time_T >= slots_B.unsqueeze(1), -math.inf)
    slot_BP = scores_BT.topk(math.ceil(frames * mask_prob / block_size), dim=1).indices
    offset_B = (torch.rand(batch, device=device) * size_B).long()

    start_BP1 = (slot_BP * size_B.unsqueeze(1) + offset_B.unsqueeze(1)).unsqueeze(2)
    chosen_BP1 = (torch.arange(slot_BP.size(1), device=device) < count_B.unsqueeze(1)).unsqueeze(2)
    covered_BPT = (time_T >= start_BP1) & (time_T < start_BP1 + size_B.view(-1, 1, 1)) & chosen_BP1
    return covered_BPT.any(1)
