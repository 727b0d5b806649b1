"""What a training batch is, and how utterances are collated into one.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.data.ssl_dataset`, `AudioNoiseBatch` and
`_audio_noise_collate_fn`.

Legend: B utterances, T samples of the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

NoisyLength = Literal["noise", "audio"]


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

    sample_id: None = field(default=None, kw_only=True)
    audio: Tensor
    audio_len: Tensor
    noise: Tensor
    noise_len: Tensor
    noisy_audio: Tensor
    noisy_audio_len: Tensor


@dataclass
class UnmixedBatch:
    """A batch before its noise is added; see `AudioNoiseBatch`."""

    audio: Tensor
    audio_len: Tensor
    noise: Tensor
    noise_len: Tensor

    def mix(self, noisy_audio_len: Tensor) -> AudioNoiseBatch:
        """Audio and noise added up."""
        noisy_audio = self.audio + self.noise
        return AudioNoiseBatch(self.audio, self.audio_len, self.noise, self.noise_len, noisy_audio, noisy_audio_len)


# Without noise: audio float32 [B, T], lengths int64 [B], the transcripts' characters int64 [B, C], lengths int64 [B].
TranscribedBatch = tuple[Tensor, Tensor, Tensor, Tensor]
Augmentor = Callable[[UnmixedBatch], AudioNoiseBatch]


def collate(
    items: Sequence[AudioNoiseItem], augmentor: Augmentor | None = None, noisy_length: NoisyLength = "noise"
) -> AudioNoiseBatch:
    """Pad utterances and noises to the longest utterance, then mix: by `augmentor`, or by adding them up.

    Args:
        items: at least one.
        augmentor: changes the noise, then mixes.
        noisy_length: which length noisy audio has: the ``noise``'s after augmentation, or the ``audio``'s.
    """
    longest = max(int(item.audio_len) for item in items)
    unmixed = UnmixedBatch(
        audio=torch.stack([fit(item.audio, longest) for item in items]),
        audio_len=torch.stack([item.audio_len for item in items]),
        noise=torch.stack([fit(item.noise, longest) for item in items]),
        noise_len=torch.stack([item.noise_len for item in items]),
    )
    batch = augmentor(unmixed) if augmentor is not None else unmixed.mix(unmixed.audio_len)
    if noisy_length == "audio":
        batch.noisy_audio_len = batch.audio_len.clone()
    return batch


def collate_transcribed(items: Sequence[TranscribedBatch]) -> TranscribedBatch:
    """Pad audio, and characters, with zeros to the longest; items are as batches, without B."""
    audios, audio_lens, characters, lengths = zip(*items, strict=True)
    longest = [max(int(length) for length in each) for each in (audio_lens, lengths)]
    signals, texts = (
        torch.stack([fit(row, most) for row in rows]) for rows, most in zip((audios, characters), longest, strict=True)
    )
    return signals, torch.stack(audio_lens), texts, torch.stack(lengths)


def fit(signal_T: Tensor, length: int) -> Tensor:
    """Cut or padded with zeros to `length`."""
    return pad(signal_T, (0, length - signal_T.size(0))) if signal_T.size(0) < length else signal_T[:length]
