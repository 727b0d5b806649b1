"""Masked blocks as NeMo before 3.0 draws them: utterance by utterance, one small block where audio is short.

Source: NeMo 2.4.1 and 2.7.3 `nemo.collections.asr.modules.ssl_modules.masking`; what they do differently is in
`BlockDraw`. The draws are theirs, one call each; what is made of them is not a loop over frames.

Shapes: B batch, T frames, P blocks of all utterances.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nest_ssl.base.errors import UserError

SHORT_BLOCK = 8  # frames


@dataclass(frozen=True)
class BlockDraw:
    """How to draw; see `masking.RandomBlockMasking` and, for the last four, `generations.Generation`."""

    block_size: int
    mask_prob: float
    max_mask_ratio: float = 0.8
    block_count: str = "torch"
    block_device: str = "cpu"
    short_audio_rule: str = "float64"
    short_audio_offset: str = "zero"


class Blocks(NamedTuple):
    """Blocks in the order drawn (P), on the CPU: whose they are, first frame, frame after the last."""

    utterances: Tensor
    starts: Tensor
    ends: Tensor


def overlapping_by_utterance(lengths_B: Tensor, how: BlockDraw) -> Blocks:
    """Blocks may overlap: a binomial number of them for each utterance, at different frames, cut at its end."""
    device = _device(lengths_B, how)
    lengths, short = lengths_B.tolist(), _short(lengths_B, how, how.short_audio_rule)
    blocks = []
    for i, length in enumerate(lengths):
        if short[i]:
            blocks.append((i, torch.zeros(1, dtype=torch.long), SHORT_BLOCK))
            continue
        places = max(0, length - how.block_size)
        count = _binomial(places, how)
        blocks.append((i, torch.randperm(places, device=device)[:count].cpu(), how.block_size))
    drawn = _join(blocks)
    return drawn._replace(ends=torch.minimum(drawn.ends, torch.tensor(lengths)[drawn.utterances]))


def separate_by_utterance(lengths_B: Tensor, how: BlockDraw) -> Blocks:
    """Blocks do not overlap: slots of a grid with a random offset, which may push the last ones beyond the utterance.

    Raises:
        UserError: a short utterance is the first of its batch, which stops NeMo 2.4.
    """
    device, block_size = _device(lengths_B, how), how.block_size
    counts = torch.ceil(lengths_B * how.mask_prob / block_size).int().tolist()
    short = _short(lengths_B, how, "float32")
    blocks, offset = [], None
    for i, (length, count) in enumerate(zip(lengths_B.tolist(), counts, strict=True)):
        if short[i]:
            blocks.append((i, torch.tensor([_short_offset(offset, how)]), SHORT_BLOCK))
            continue
        offset = int(torch.randint(0, block_size, (1,), device=device))
        size = length // (count + 1) if (count + 1) * block_size > length else block_size
        slots = torch.randperm(length // size - 1, device=device)[:count].cpu()
        blocks.append((i, slots * size + offset, size))
    return _join(blocks)


def mask_of(blocks: Blocks, batch: int, frames: int) -> Tensor:
    """A mask (B, T), true within a block; what lies beyond the last frame is cut off."""
    depth = torch.zeros(batch, frames + 1, dtype=torch.long)  # how many blocks a frame lies in, as steps up and down
    for places, step in ((blocks.starts, 1), (blocks.ends, -1)):
        depth.index_put_((blocks.utterances, places.clamp(max=frames)), torch.tensor(step), accumulate=True)
    return depth.cumsum(1)[:, :frames] > 0


def _device(lengths_B: Tensor, how: BlockDraw) -> torch.device:
    return torch.device("cpu") if how.block_device == "cpu" else lengths_B.device


def _short(lengths_B: Tensor, how: BlockDraw, rule: str) -> list[bool]:
    """Whether a block would be too large a part of the utterance; precision decides where it is just that part."""
    exact = lengths_B.double() if rule == "float64" else lengths_B
    return (how.block_size >= exact * how.max_mask_ratio).tolist()


def _binomial(places: int, how: BlockDraw) -> int:
    if how.block_count == "numpy":
        return int(np.random.binomial(places, how.mask_prob))
    return int(torch.binomial(torch.tensor(float(places)), torch.tensor(float(how.mask_prob))))


def _short_offset(previous: int | None, how: BlockDraw) -> int:
    if how.short_audio_offset == "zero":
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
