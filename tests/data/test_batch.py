"""Collation."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.data.batch import AudioNoiseBatch, AudioNoiseItem, UnmixedBatch, collate, fit


def item(audio: int, noise: int) -> AudioNoiseItem:
    return AudioNoiseItem(torch.ones(audio), torch.tensor(audio), torch.full((noise,), 2.0), torch.tensor(noise))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=5))
def test_padded_to_the_longest_utterance(lengths: list[tuple[int, int]]) -> None:
    batch = collate([item(*pair) for pair in lengths])
    longest = max(audio for audio, _ in lengths)
    for field in (batch.audio, batch.noise, batch.noisy_audio):
        assert (field.shape, field.dtype) == ((len(lengths), longest), torch.float32)
    assert batch.audio.sum(1).tolist() == [audio for audio, _ in lengths]
    assert batch.noise.sum(1).tolist() == [2 * min(noise, longest) for _, noise in lengths]
    assert torch.equal(batch.noisy_audio, batch.audio + batch.noise)
    assert batch.audio_len.tolist() == [audio for audio, _ in lengths]
    assert batch.noise_len.tolist() == [noise for _, noise in lengths], "not cut: as in NeMo"
    assert batch.noisy_audio_len is batch.audio_len
    assert (batch.audio_len.dtype, batch.noise_len.dtype, batch.sample_id) == (torch.int64, torch.int64, None)


def test_an_augmentor_does_the_mixing() -> None:
    wanted = AudioNoiseBatch(*[torch.zeros(1)] * 6)
    assert collate([item(3, 3)], lambda batch: wanted) is wanted


def test_before_nemo_2_5_noisy_audio_is_as_long_as_the_speech() -> None:
    def mixes(batch: UnmixedBatch) -> AudioNoiseBatch:
        return batch.mix(batch.noise_len)

    for augmentor in (None, mixes):
        batch = collate([item(9, 4), item(5, 7)], augmentor, noisy_length="audio")
        assert batch.noisy_audio_len.tolist() == [9, 5]
        assert batch.noisy_audio_len is not batch.audio_len, "a tensor of its own"
    assert collate([item(9, 4)], mixes).noisy_audio_len.tolist() == [4]


@given(length=st.integers(0, 20), wanted=st.integers(0, 20))
def test_fit(length: int, wanted: int) -> None:
    signal = torch.arange(1, length + 1)
    assert fit(signal, wanted).tolist() == ([*range(1, length + 1)] + [0] * 20)[:wanted]
