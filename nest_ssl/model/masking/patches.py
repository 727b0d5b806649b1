"""Patches of time set to zero: of every utterance in a batch as many, so that as many steps are to be predicted.

Source: NeMo 3.0.0 `nemo.collections.asr.modules.audio_preprocessing.MaskedPatchAugmentation`.

Drawn: by Python's global generator; bands of frequency as `spec_augment.py` says.

Shapes: B batch, F features, T frames.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from torch import Tensor, nn

from nest_ssl.config.parts import Cuts, Patches
from nest_ssl.model.masking.spec_augment import SpecAugment, SpectrogramAugmentation

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class MaskedPatchAugmentation(nn.Module):
    """Patches of `patch_size` frames, and bands of frequency; features are changed in place, as in NeMo."""

    def __init__(self, settings: Patches) -> None:
        super().__init__()
        self.settings = settings
        self.spec_augment = None
        if settings.freq_masks > 0:
            self.spec_augment = SpecAugment(Cuts(freq_masks=settings.freq_masks, freq_width=settings.freq_width))

    def forward(self, input_spec: Float[Tensor, "B F T"], length: Int[Tensor, " B"]) -> Float[Tensor, "B F T"]:
        """Features (B, F, T) with masks."""
        size, number = self.settings.patch_size, self.number_in(length)
        for utterance, frames in zip(input_spec, length.tolist(), strict=True):
            for patch in random.sample(range(frames // size), number):
                utterance[:, patch * size : (patch + 1) * size] = 0.0
        if self.spec_augment is not None:
            masked: Tensor = self.spec_augment(input_spec=input_spec, length=length)
            return masked
        return input_spec

    def number_in(self, length: Int[Tensor, " B"]) -> int:
        """How many patches of each utterance: so many, or so large a part of the shortest, and no more than it has."""
        size, asked, shortest = self.settings.patch_size, self.settings.mask_patches, length.min()
        # Multiplied as a tensor: NeMo rounds the part of the frames in float32.
        number = int(asked) if asked >= 1 else -(-int(shortest * asked) // size)
        return min(number, int(shortest) // size)


def augmentation_of(settings: Cuts | Patches) -> SpectrogramAugmentation | MaskedPatchAugmentation:
    """What masks features, as the settings name it."""
    return MaskedPatchAugmentation(settings) if isinstance(settings, Patches) else SpectrogramAugmentation(settings)
