"""What a training batch is, and how utterances are collated into one.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.data.ssl_dataset`, `AudioNoiseBatch` and
`_audio_noise_collate_fn`.

Legend: B utterances, T samples of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass
class AudioNoiseItem:
    """An utterance and the noise drawn for it: `audio` and `noise` [T], their lengths int64 []."""

    audio: Tensor
    audio_len: Tensor
    noise: Tensor
    noise_len: Tensor


@dataclass
class AudioNoiseBatch:
    """NeMo's batch, field for field.

    Args:
        sample_id: always None, as in NeMo.
        audio: clean speech, float32 [B, T], zero beyond each length.
        audio_len: samples, int64 [B].
        noise: what is added to `audio`, float32 [B, T].
        noise_len: samples, int64 [B].
        noisy_audio: their sum, float32 [B, T].
        noisy_audio_len: int64 [B]. With an augmentor it *is* `noise_len`, so an utterance that was not augmented has
            its noise clip's own length here; without one it is `audio_len`. Before NeMo 2.5: a copy of `audio_len`.
    """

    sample_id: list[str] | None = None
    audio: Tensor | None = None
    audio_len: Tensor | None = None
    noise: Tensor | None = None
    noise_len: Tensor | None = None
    noisy_audio: Tensor | None = None
    noisy_audio_len: Tensor | None = None


Augmentor = Callable[[AudioNoiseBatch], AudioNoiseBatch]


def collate(
    items: Sequence[AudioNoiseItem], augmentor: Augmentor | None = None, noisy_length: str = "noise"
) -> AudioNoiseBatch:
    """Pad utterances and noises to the longest utterance, then mix: by `augmentor`, or by adding them up.

    Args:
        items: at least one.
        augmentor: changes the noise, and gives the batch its noisy fields.
        noisy_length: whose length noisy audio has: the ``noise``'s after augmentation, or the ``audio``'s.
    """
    longest = max(int(item.audio_len) for item in items)
    batch = AudioNoiseBatch(
        audio=torch.stack([fit(item.audio, longest) for item in items]),
        audio_len=torch.stack([item.audio_len for item in items]),
        noise=torch.stack([fit(item.noise, longest) for item in items]),
        noise_len=torch.stack([item.noise_len for item in items]),
    )
    if augmentor is not None:
        batch = augmentor(batch)
    else:
        batch.noisy_audio = batch.audio + batch.noise
        batch.noisy_audio_len = batch.audio_len
    if noisy_length == "audio":
        batch.noisy_audio_len = batch.audio_len.clone()
    return batch


def fit(signal_T: Tensor, length: int) -> Tensor:
    """Cut or padded with zeros to `length`."""
    return pad(signal_T, (0, length - signal_T.size(0))) if signal_T.size(0) < length else signal_T[:length]
