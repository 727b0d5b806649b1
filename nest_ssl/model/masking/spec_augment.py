"""Stretches of time, bands of frequency and rectangles of a spectrogram, set to zero.

Source: SpecAugment (arXiv 1904.08779), Cutout (arXiv 1708.04552); NeMo 3.0.0 `nemo.collections.asr`,
`parts.submodules.spectr_augment` and `modules.audio_preprocessing.SpectrogramAugmentation`.

Drawn: by torch, on the features' device; what NeMo draws from a generator of its own (rectangles; all, without
`use_vectorized_spec_augment`) by `_rng`, NeMo's name, see `run/subject.draw_from_python`.

Shapes: B batch, F features, T frames, M masks, A bins of one axis.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nest_ssl.config.parts import Cuts

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class SpecAugment(nn.Module):
    """Masks of a drawn width at a drawn place, along time and along frequency."""

    def __init__(self, settings: Cuts) -> None:
        super().__init__()
        self.settings, self._rng = settings, random.Random()

    @torch.no_grad()
    def forward(self, input_spec: Float[Tensor, "B F T"], length: Int[Tensor, " B"]) -> Float[Tensor, "B F T"]:
        """Features (B, F, T) with masks, of their type."""
        settings, (_, bins, frames) = self.settings, input_spec.shape
        if not settings.use_vectorized_spec_augment:
            masked = self.drawn_one_by_one(input_spec.shape, length.tolist()).to(input_spec.device)
            return input_spec.masked_fill(masked, settings.mask_value)
        length_B1, width = length.unsqueeze(1), settings.time_width
        widest = torch.clamp(width * length_B1, max=frames) if isinstance(width, float) else width
        masked_BT = self.drawn_along(frames, settings.time_masks, widest, length_B1)
        masked_BF = self.drawn_along(bins, settings.freq_masks, settings.freq_width, torch.full_like(length_B1, bins))
        masked = masked_BT.unsqueeze(1) | masked_BF.unsqueeze(2)
        return input_spec.masked_fill(masked, settings.mask_value)

    def drawn_along(self, size: int, number: int, widest: Any, within_B1: Int[Tensor, "B 1"]) -> Bool[Tensor, "B A"]:
        """Where `number` masks are along an axis of that size: up to so wide, each inside of what is `within_B1`."""
        shape, device = (len(within_B1), number), within_B1.device
        widths_BM = (torch.rand(shape, device=device, dtype=torch.float32) * widest).long()
        starts_BM = (torch.rand(shape, device=device, dtype=torch.float32) * (within_B1 - widths_BM)).long()
        bins_A = torch.arange(size, device=device)
        starts_BM1, ends_BM1 = starts_BM.unsqueeze(-1), (starts_BM + widths_BM).unsqueeze(-1)
        masked_BA: Tensor = ((bins_A >= starts_BM1) & (bins_A < ends_BM1)).any(dim=1)
        return masked_BA

    def drawn_one_by_one(self, shape: torch.Size, lengths: list[int]) -> Bool[Tensor, "B F T"]:
        """The same, utterance by utterance, each number from `_rng`."""
        settings, draw = self.settings, self._rng.randint
        masked = torch.zeros(shape, dtype=torch.bool)
        for number, length in enumerate(lengths):
            for _ in range(settings.freq_masks):
                start = draw(0, shape[1] - settings.freq_width)
                masked[number, start : start + draw(0, settings.freq_width)] = True
            width = settings.time_width
            widest = max(1, int(length * width)) if isinstance(width, float) else width
            for _ in range(settings.time_masks):
                start = draw(0, max(1, length - widest))
                masked[number, :, start : start + draw(0, widest)] = True
        return masked


class SpecCutout(nn.Module):
    """Rectangles of a drawn size at a drawn place; features are changed in place, as in NeMo."""

    def __init__(self, settings: Cuts) -> None:
        super().__init__()
        self.settings, self._rng = settings, random.Random()

    @torch.no_grad()
    def forward(self, input_spec: Float[Tensor, "B F T"]) -> Float[Tensor, "B F T"]:
        settings, draw, (batch, bins, frames) = self.settings, self._rng.randint, input_spec.shape
        for number in range(batch):
            for _ in range(settings.rect_masks):
                low, start = draw(0, bins - settings.rect_freq), draw(0, frames - settings.rect_time)
                height, width = draw(0, settings.rect_freq), draw(0, settings.rect_time)
                input_spec[number, low : low + height, start : start + width] = 0.0
        return input_spec


class SpectrogramAugmentation(nn.Module):
    """Rectangles, then stretches and bands, of each as many as there are to be."""

    def __init__(self, settings: Cuts) -> None:
        super().__init__()
        self.spec_cutout: Callable[..., Tensor] = SpecCutout(settings) if settings.rect_masks else untouched
        has_masks = settings.freq_masks + settings.time_masks > 0
        self.spec_augment: Callable[..., Tensor] = SpecAugment(settings) if has_masks else untouched

    def forward(self, input_spec: Float[Tensor, "B F T"], length: Int[Tensor, " B"]) -> Float[Tensor, "B F T"]:
        """Features (B, F, T) with masks."""
        return self.spec_augment(input_spec=self.spec_cutout(input_spec=input_spec), length=length)


def untouched(input_spec: Tensor, length: Tensor | None = None) -> Tensor:
    return input_spec
