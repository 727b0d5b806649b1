"""Where NeMo's numbers changed from one release to the next: each difference has a name, one table says who has which.

A module's constructor takes the differences that concern it, by these names; nothing else asks for a version.
"""

from __future__ import annotations

from dataclasses import dataclass

from nest_ssl.errors import UserError


@dataclass(frozen=True)
class Generation:
    """The named differences.

    Args:
        stft_padding: how the signal is padded for the centred STFT (a `pad_mode` of `torch.stft`).
        mask_waveform: whether samples beyond an utterance's length are set to zero after pre-emphasis.
        extra_frames: frames counted on top of `samples // hop`.
        block_draw: how masked blocks are drawn; a key of `masking.BLOCK_DRAWS`.
    """

    stft_padding: str
    mask_waveform: bool
    extra_frames: int
    block_draw: str


GENERATIONS = {
    "3.0": Generation(stft_padding="constant", mask_waveform=True, extra_frames=0, block_draw="whole_batch"),
}


def generation(name: str) -> Generation:
    """The differences of one generation of NeMo.

    Raises:
        UserError: no such generation.
    """
    if name not in GENERATIONS:
        raise UserError("no such generation of NeMo", repr(name), f"Choose one of: {', '.join(GENERATIONS)}.")
    return GENERATIONS[name]
