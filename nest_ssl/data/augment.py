"""Noise and other speakers mixed into a batch, at a drawn loudness, place and length.

Every number comes from `draws.py`, in the order in which NeMo draws.
Energies and gains are float32 tensors, computed by NeMo's expressions: a Python float in their place would change the
last bit.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.modules.ssl_modules.augmentation`; the recipe is the NEST
paper's (arXiv:2408.13106).

Legend: B utterances, T samples, S samples of a segment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import BatchAugmentor, MultiBatchAugmentor
from nest_ssl.data.batch import AudioNoiseBatch, UnmixedBatch, fit
from nest_ssl.data.draws import DRAWS, Draws, DrawsFrom


@dataclass(eq=False)
class SpeakerNoiseAugmentation:
    """Mixes one stretch of noise or of one other utterance into each utterance chosen.

    Args:
        settings: how often, how much, how loud; see there.
        draws_from: where the numbers come from; no setting, but a difference between NeMo's generations.
    """

    settings: BatchAugmentor
    draws_from: DrawsFrom = "python"

    @property
    def draws(self) -> Draws:
        """Looked up, not kept: what goes to a spawned worker must pickle."""
        return DRAWS[self.draws_from]

    def __call__(self, batch: UnmixedBatch) -> AudioNoiseBatch:
        """Augments in place: `noise` and `noise_len` change."""
        for i in range(batch.audio.size(0)):
            if not self.draws.fraction() > self.settings.prob:
                self.augment(batch, i)
        return batch.mix(batch.noise_len)

    def augment(self, batch: UnmixedBatch, i: int) -> None:
        """Put into `noise[i]` what is to be added to utterance `i`."""
        audio_BT, noise_BT, audio_len_B, noise_len_B = batch.audio, batch.noise, batch.audio_len, batch.noise_len
        shortest = int(audio_len_B[i] * self.settings.min_mix_rate)
        longest = int(audio_len_B[i] * self.settings.max_mix_rate) - 1
        if self.settings.min_mix_rate == self.settings.max_mix_rate:
            mix_len = max(1, shortest)
        elif longest < shortest:
            raise _bad("max_mix_rate", f"too near to min_mix_rate for {int(audio_len_B[i])} samples")
        else:
            mix_len = self.draws.integer(shortest, longest + 1)
        room = int(audio_len_B[i]) - mix_len - 1
        if room < 0:
            raise _bad("max_mix_rate", "a stretch as long as the utterance leaves no place to draw")
        mix_start = self.draws.integer(0, room + 1)
        mode, ratio_db = self.draw_mode(audio_BT.size(0))
        if mode == "speech":
            other = self.draws.choice([x for x in range(audio_BT.size(0)) if x != i])
            noise_BT[i] = audio_BT[other]
            noise_len_B[i] = audio_len_B[other]
        start = 0
        if noise_len_B[i] <= mix_len:
            noise_BT[i] = fit(repeat(noise_BT[i], int(noise_len_B[i]), mix_len), noise_BT.size(1))
            noise_len_B[i] = mix_len
        else:
            start = self.draws.integer(0, int(noise_len_B[i]) - mix_len)
        scale = _gain(audio_BT[i], audio_len_B[i], noise_BT[i], noise_len_B[i], ratio_db)
        mixed_T = torch.zeros_like(audio_BT[i])
        mixed_T[mix_start : mix_start + mix_len] = scale * noise_BT[i, start : start + mix_len]
        noise_BT[i] = mixed_T
        noise_len_B[i] = audio_len_B[i]

    def draw_mode(self, batch_size: int) -> tuple[Literal["noise", "speech"], float]:
        """Noise or speech, and the energy ratio in dB."""
        if self.draws.fraction() < self.settings.noise_ratio or batch_size == 1:
            return "noise", self.draws.uniform(self.settings.min_r_noise, self.settings.max_r_noise)
        return "speech", self.draws.uniform(self.settings.min_r_speech, self.settings.max_r_speech)


@dataclass(eq=False)
class MultiSpeakerNoiseAugmentation(SpeakerNoiseAugmentation):
    """Mixes several segments, of noise or of other speakers, at drawn places (the NEST recipe's, with one segment)."""

    settings: MultiBatchAugmentor

    def augment(self, batch: UnmixedBatch, i: int) -> None:
        """Put into `noise[i]` what is to be added to utterance `i`."""
        audio_BT, noise_BT, audio_len_B, noise_len_B = batch.audio, batch.noise, batch.audio_len, batch.noise_len
        mix_rate = self.settings.min_mix_rate
        if self.settings.min_mix_rate < self.settings.max_mix_rate:
            mix_rate = self.draws.uniform(self.settings.min_mix_rate, self.settings.max_mix_rate)
        mix_len = max(1, int(audio_len_B[i] * mix_rate))  # in float32: 0.7 of 20,500 is 14,350 (in Python 14,349)
        num_segments = self.draws.integer(self.settings.min_num_segments, self.settings.max_num_segments + 1)
        num_speakers = self.draws.integer(self.settings.min_num_speakers, self.settings.max_num_speakers + 1)
        lengths = self.draws.cut(mix_len, num_segments)
        mode, ratio_db = self.draw_mode(audio_BT.size(0))
        if mode == "noise":
            filled_T = repeat(noise_BT[i], int(noise_len_B[i]), noise_BT.size(1))
            segments = list(torch.split(filled_T[: sum(lengths)], lengths))
        else:
            segments = _speech_segments(batch, i, lengths, min(num_speakers, audio_BT.size(0)), self.draws)
        mixed_T = torch.zeros_like(audio_BT[i])
        earliest, latest = 0, int(audio_len_B[i]) - mix_len  # one after another, with drawn gaps
        for segment_S in segments:
            start = self.draws.integer(earliest, latest) if earliest < latest else earliest
            mixed_T[start : start + len(segment_S)] = segment_S
            earliest = start + len(segment_S)
            latest += len(segment_S)
        noise_BT[i] = _gain(audio_BT[i], audio_len_B[i], mixed_T, audio_len_B[i], ratio_db) * mixed_T
        noise_len_B[i] = audio_len_B[i]


def repeat(signal_T: Tensor, length: int, wanted: int) -> Tensor:
    """The first `length` samples over and over, `wanted` in all at most."""
    if length == 0 < wanted:
        raise UserError("a noise clip without samples", "noise_manifest", "Correct its offset or duration, or drop it.")
    signal_T = signal_T[:length]
    return (signal_T.repeat(wanted // length + 1) if length < wanted else signal_T)[:wanted]


def _speech_segments(batch: UnmixedBatch, i: int, lengths: list[int], num_speakers: int, draws: Draws) -> list[Tensor]:
    """Pieces of other utterances, the speakers in turn; once all have spoken, each next one is drawn."""
    audio_BT, audio_len_B = batch.audio, batch.audio_len
    others = [x for x in range(audio_BT.size(0)) if x != i]
    speakers = draws.sample(others, min(num_speakers, len(others)))
    if not speakers:
        raise _bad("min_num_speakers", "another speaker is to be mixed in and none may be drawn")
    turn, segments = 0, []
    for length in lengths:
        speaker = speakers[turn]
        spoken = int(audio_len_B[speaker])
        if length > spoken:
            segments.append(repeat(audio_BT[speaker], spoken, length))
        else:
            start = draws.integer(0, spoken - length) if spoken > length else 0
            segments.append(audio_BT[speaker][start : start + length])
        turn += 1
        if turn >= len(speakers):
            turn = draws.integer(0, len(speakers))
    return segments


def _gain(audio_T: Tensor, audio_len: Tensor, noise_T: Tensor, noise_len: Tensor, ratio_db: float) -> float:
    """What brings the noise's mean energy to `ratio_db` below the audio's; 0 where the noise has none."""
    audio_energy = torch.sum(audio_T[:audio_len] ** 2) / audio_len
    noise_energy = torch.sum(noise_T[:noise_len] ** 2) / noise_len  # NaN for a clip without samples
    return math.sqrt(audio_energy / (10 ** (ratio_db / 10) * noise_energy)) if noise_energy > 0 else 0


def build_augmentor(settings: BatchAugmentor, draws: DrawsFrom = "python") -> SpeakerNoiseAugmentation:
    """The augmentor that a `batch_augmentor` section describes, and where its numbers come from."""
    if isinstance(settings, MultiBatchAugmentor):
        return MultiSpeakerNoiseAugmentation(settings, draws)
    return SpeakerNoiseAugmentation(settings, draws)


def _bad(key: str, why: str) -> UserError:
    return UserError(why, f"batch_augmentor.{key}", "Correct the value.")
