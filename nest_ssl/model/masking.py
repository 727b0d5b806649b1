"""Random block masking of features, before the encoder.

Source: NeMo 3.0.0 `nemo.collections.asr.modules.ssl_modules.masking`, which draws for the whole batch (`blocks.py` for
older releases, which draw utterance by utterance) and ignores `max_mask_ratio`.

Shapes: B batch, F features, T frames, P blocks in an utterance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.model.blocks import BlockDraw, Blocks, mask_of, overlapping_by_utterance, separate_by_utterance


class RandomBlockMasking(nn.Module):
    """Puts one random vector in place of every frame of randomly placed blocks.

    Args:
        feat_in: F.
        mask_prob: with overlap, the chance that a block starts at a frame; else the part of the utterance to mask.
        block_size: frames in a block.
        mask_value: what to put in place of features; None for a vector drawn from N(0, 0.1).
        freeze: whether that vector is left out of training.
        allow_overlap: whether blocks may overlap.
        max_mask_ratio: an utterance of which a block is so large a part gets one small block (not in NeMo 3.0).
        block_draw, block_count, block_device, short_audio_rule, short_audio_offset, mask_writing: see
            `generations.Generation`.

    Raises:
        UserError: in `forward`, a batch on which the NeMo release to reproduce fails.
    """

    def __init__(
        self,
        feat_in: int,
        mask_prob: float = 0.5,
        block_size: int = 48,
        mask_value: float | None = None,
        freeze: bool = True,
        allow_overlap: bool = False,
        max_mask_ratio: float = 0.8,
        block_draw: str = "whole_batch",
        block_count: str = "torch",
        block_device: str = "features",
        short_audio_rule: str = "none",
        short_audio_offset: str = "none",
        mask_writing: str = "where",
    ) -> None:
        super().__init__()
        self.block_size, self.mask_prob, self.allow_overlap = block_size, mask_prob, allow_overlap
        self.block_draw, self.mask_writing = block_draw, mask_writing
        self.how = BlockDraw(
            block_size, mask_prob, max_mask_ratio, block_count, block_device, short_audio_rule, short_audio_offset
        )
        if mask_value is None:
            self.mask_embedding = nn.Parameter(torch.empty(feat_in))
            nn.init.normal_(self.mask_embedding, mean=0.0, std=0.1)
        else:
            self.mask_embedding = nn.Parameter(torch.ones(feat_in) * mask_value, requires_grad=False)
        if freeze:
            self.requires_grad_(False).eval()

    def forward(self, input_feats: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and their lengths (B) to masked features and the mask (B, F, T), 1 where masked."""
        if self.block_draw == "whole_batch":
            draw = overlapping_blocks if self.allow_overlap else separate_blocks
            mask_B1T = draw(input_lengths, input_feats.size(2), self.block_size, self.mask_prob).unsqueeze(1)
            masked_BFT = torch.where(mask_B1T, self.mask_embedding.view(1, -1, 1), input_feats)
            return masked_BFT, mask_B1T.to(input_feats.dtype).expand_as(input_feats)
        draw = overlapping_by_utterance if self.allow_overlap else separate_by_utterance
        blocks = draw(input_lengths, self.how)
        if self.mask_writing == "indices":
            _refuse_overrun(blocks, input_feats.size(2))
        mask_BT = mask_of(blocks, len(input_lengths), input_feats.size(2)).to(input_feats.device)
        masks_BFT = mask_BT.unsqueeze(1).to(input_feats.dtype).expand_as(input_feats).contiguous()
        return self.write(input_feats, blocks, mask_BT), masks_BFT

    def write(self, x_BFT: Tensor, blocks: Blocks, mask_BT: Tensor) -> Tensor:
        """The mask vector in place of masked frames. While it learns, its gradient adds up as in the release."""
        if not self.mask_embedding.requires_grad:
            return torch.where(mask_BT.unsqueeze(1), self.mask_embedding.view(1, -1, 1), x_BFT)
        if self.mask_writing == "indices":
            if not mask_BT.any():
                return x_BFT
            return x_BFT.transpose(1, 2).index_put(mask_BT.nonzero(as_tuple=True), self.mask_embedding).transpose(1, 2)
        masked_BFT, vector_F1 = x_BFT.clone(), self.mask_embedding.unsqueeze(-1)
        for utterance, start, end in zip(*(part.tolist() for part in blocks), strict=True):
            masked_BFT[utterance, :, start:end] = vector_F1
        return masked_BFT


def overlapping_blocks(lengths_B: Tensor, frames: int, block_size: int, mask_prob: float) -> Tensor:
    """A mask (B, T): a block starts at a frame with `mask_prob`, if a whole one fits before the utterance ends."""
    fits_BT = torch.arange(frames, device=lengths_B.device) + block_size <= lengths_B.unsqueeze(1)
    starts_BT = (torch.rand(len(lengths_B), frames, device=lengths_B.device) < mask_prob) & fits_BT
    begun_BT = starts_BT.cumsum(1)
    ended_BT = F.pad(begun_BT, (block_size, 0))[:, :frames]
    return begun_BT > ended_BT


def separate_blocks(lengths_B: Tensor, frames: int, block_size: int, mask_prob: float) -> Tensor:
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


def _refuse_overrun(blocks: Blocks, frames: int) -> None:
    latest = int(blocks.ends.max()) if len(blocks.ends) else 0
    if latest > frames:
        what = f"a masked block ends at frame {latest} of {frames}; NeMo 2.7 fails on such a batch (IndexError)"
        fix = "Set model.masking.allow_overlap=true, or a smaller mask_prob or block_size."
        raise UserError(what, "model.masking", fix)
