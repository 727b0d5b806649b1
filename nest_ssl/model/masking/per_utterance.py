"""Masked blocks as NeMo before 3.0 draws them: utterance by utterance, one small block where audio is short.

Source: NeMo 2.4.1 and 2.7.3 `nemo.collections.asr.modules.ssl_modules.masking`; what they do differently is in
`releases.Generation`. The draws are NeMo's, one call each; what is made of them is not a loop over frames.

Shapes: B batch, T frames, P blocks of all utterances.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Masking
from nest_ssl.releases import Generation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

SHORT_BLOCK = 8  # frames


class Blocks(NamedTuple):
    """Blocks in the order drawn (P), on the CPU: number of the utterance, first frame, frame after the last."""

    utterances: Tensor
    starts: Tensor
    ends: Tensor


def overlapping_by_utterance(lengths_B: Int[Tensor, " B"], settings: Masking, differences: Generation) -> Blocks:
    """Blocks may overlap: a binomial number of them for each utterance, at different frames, cut at its end."""
    device = lengths_B.device if differences.block_device == "features" else torch.device("cpu")
    exact_B = lengths_B.double() if differences.short_audio_rule == "float64" else lengths_B
    lengths, short = lengths_B.tolist(), _too_short(exact_B, settings)
    blocks = []
    for i, length in enumerate(lengths):
        if short[i]:
            blocks.append((i, torch.zeros(1, dtype=torch.long), SHORT_BLOCK))
            continue
        places = max(0, length - settings.block_size)
        if differences.block_count == "numpy":
            count = int(np.random.binomial(places, settings.mask_prob))
        else:
            count = int(torch.binomial(torch.tensor(float(places)), torch.tensor(float(settings.mask_prob))))
        # Drawn also where count is 0: the generator must move on as NeMo's does.
        blocks.append((i, torch.randperm(places, device=device)[:count].cpu(), settings.block_size))
    drawn = _join(blocks)
    return drawn._replace(ends=torch.minimum(drawn.ends, torch.tensor(lengths)[drawn.utterances]))


def separate_by_utterance(lengths_B: Int[Tensor, " B"], settings: Masking, differences: Generation) -> Blocks:
    """Blocks do not overlap: slots of a grid with a random offset, which may push the last ones beyond the utterance.

    Raises:
        UserError: a short utterance is the first of its batch, which stops NeMo 2.4.
    """
    device = lengths_B.device if differences.block_device == "features" else torch.device("cpu")
    block_size = settings.block_size
    counts = torch.ceil(lengths_B * settings.mask_prob / block_size).int().tolist()
    # Without overlap no release converts the lengths: the product is float32's, whatever `short_audio_rule` says.
    short = _too_short(lengths_B, settings)
    blocks, offset = [], None
    for i, (length, count) in enumerate(zip(lengths_B.tolist(), counts, strict=True)):
        if short[i]:
            blocks.append((i, torch.tensor([_short_offset(offset, differences)]), SHORT_BLOCK))
            continue
        offset = int(torch.randint(0, block_size, (1,), device=device))
        size = length // (count + 1) if (count + 1) * block_size > length else block_size
        slots = torch.randperm(length // size - 1, device=device)[:count].cpu()
        blocks.append((i, slots * size + offset, size))
    return _join(blocks)


def mask_of(blocks: Blocks, batch: int, frames: int) -> Bool[Tensor, "B T"]:
    """A mask (B, T), true within a block; what lies beyond the last frame is cut off."""
    depth = torch.zeros(batch, frames + 1, dtype=torch.long)  # how many blocks a frame lies in, as steps up and down
    for places, step in ((blocks.starts, 1), (blocks.ends, -1)):
        depth.index_put_((blocks.utterances, places.clamp(max=frames)), torch.tensor(step), accumulate=True)
    return depth.cumsum(1)[:, :frames] > 0


def _too_short(lengths_B: Int[Tensor, " B"] | Float[Tensor, " B"], settings: Masking) -> list[bool]:
    """Whether a block would be too large a part of the utterance. Rounding of the product decides where it just is."""
    return (settings.block_size >= lengths_B * settings.max_mask_ratio).tolist()


def _short_offset(previous: int | None, differences: Generation) -> int:
    if differences.short_audio_offset == "zero":
        return 0
    if previous is None:
        what = "the first utterance of a batch is too short for a masked block; NeMo 2.4 fails on such a batch"
        fix = "Set model.masking.allow_overlap=true, a smaller block_size, or a larger min_duration."
        raise UserError(what, "model.masking.allow_overlap=false", fix)
    return previous


def _join(blocks: Iterable[tuple[int, Tensor, int]]) -> Blocks:
    """One `Blocks` of each utterance's number, starts and block size."""
    blocks = list(blocks)
    return Blocks(
        torch.cat([torch.full_like(starts, i) for i, starts, _ in blocks]),
        torch.cat([starts for _, starts, _ in blocks]),
        torch.cat([starts + size for _, starts, size in blocks]),
    )
