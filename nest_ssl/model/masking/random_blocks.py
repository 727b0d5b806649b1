"""Random block masking of features, before the encoder.

Source: NeMo `nemo.collections.asr.modules.ssl_modules.masking`. Release 3.0.0 draws for the whole batch
(`whole_batch.py`) and ignores `max_mask_ratio`; older ones draw utterance by utterance (`per_utterance.py`).

Shapes: B batch, F features, T frames.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Masking
from nest_ssl.model.masking.per_utterance import Blocks, mask_of, overlapping_by_utterance, separate_by_utterance
from nest_ssl.model.masking.whole_batch import overlapping_blocks, separate_blocks
from nest_ssl.releases import GENERATIONS, NEWEST, Generation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class RandomBlockMasking(nn.Module):
    """Puts one vector, random unless `mask_value` is given, in place of every frame of randomly placed blocks.

    Raises:
        UserError: in `forward`, a batch on which the NeMo release to reproduce fails.
    """

    def __init__(self, settings: Masking, differences: Generation = GENERATIONS[NEWEST]) -> None:
        super().__init__()
        self.settings, self.differences = settings, differences
        self.block_size, self.mask_prob = settings.block_size, settings.mask_prob
        if settings.mask_value is None:
            self.mask_embedding = nn.Parameter(torch.empty(settings.feat_in))
            nn.init.normal_(self.mask_embedding, mean=0.0, std=0.1)
        else:
            vector = torch.ones(settings.feat_in) * settings.mask_value
            self.mask_embedding = nn.Parameter(vector, requires_grad=False)
        if settings.freeze:
            self.requires_grad_(False).eval()

    def forward(
        self, input_feats: Float[Tensor, "B F T"], input_lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B F T"], Float[Tensor, "B F T"]]:
        """Features (B, F, T) and their lengths (B) to masked features and the mask (B, F, T), 1 where masked."""
        x_BFT, overlap = input_feats, self.settings.allow_overlap
        if self.differences.block_draw == "whole_batch":
            draw = overlapping_blocks if overlap else separate_blocks
            mask_B1T = draw(input_lengths, x_BFT.size(2), self.block_size, self.mask_prob).unsqueeze(1)
            masked_BFT = torch.where(mask_B1T, self.mask_embedding.view(1, -1, 1), x_BFT)
            return masked_BFT, mask_B1T.to(x_BFT.dtype).expand_as(x_BFT)
        draw_each = overlapping_by_utterance if overlap else separate_by_utterance
        blocks = draw_each(input_lengths, self.settings, self.differences)
        if self.differences.mask_writing == "indices":
            _refuse_overrun(blocks, x_BFT.size(2))
        mask_BT = mask_of(blocks, len(input_lengths), x_BFT.size(2)).to(x_BFT.device)
        masks_BFT = mask_BT.unsqueeze(1).to(x_BFT.dtype).expand_as(x_BFT).contiguous()
        return self.write(x_BFT, blocks, mask_BT), masks_BFT

    def write(
        self, x_BFT: Float[Tensor, "B F T"], blocks: Blocks, mask_BT: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B F T"]:
        """The mask vector in place of masked frames.

        Frozen, only where it stands matters. While it learns, its gradient is a sum over the masked frames, and the
        way of writing decides the order, and so the bits, of that sum: each release's own way is kept.
        """
        if not self.mask_embedding.requires_grad:
            return torch.where(mask_BT.unsqueeze(1), self.mask_embedding.view(1, -1, 1), x_BFT)
        if self.differences.mask_writing == "indices":
            if not mask_BT.any():
                return x_BFT
            return x_BFT.transpose(1, 2).index_put(mask_BT.nonzero(as_tuple=True), self.mask_embedding).transpose(1, 2)
        masked_BFT, vector_F1 = x_BFT.clone(), self.mask_embedding.unsqueeze(-1)
        for utterance, start, end in zip(*(part.tolist() for part in blocks), strict=True):
            masked_BFT[utterance, :, start:end] = vector_F1
        return masked_BFT


def _refuse_overrun(blocks: Blocks, frames: int) -> None:
    latest = int(blocks.ends.max()) if len(blocks.ends) else 0
    if latest > frames:
        what = f"a masked block ends at frame {latest} of {frames}; NeMo 2.7 fails on such a batch (IndexError)"
        fix = "Set model.masking.allow_overlap=true, or a smaller mask_prob or block_size."
        raise UserError(what, "model.masking", fix)
