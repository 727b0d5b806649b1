"""Mixing noise and speakers into a batch. (That the bits are NeMo's: tests/against_nemo/test_batches.py.)"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import BatchAugmentor, Dataset, MultiBatchAugmentor
from nest_ssl.config.section import read
from nest_ssl.data.augment import SpeakerNoiseAugmentation, build_augmentor, repeat
from nest_ssl.data.batch import UnmixedBatch

MODULES = "nemo.collections.asr.modules.ssl_modules"
KINDS = [BatchAugmentor, MultiBatchAugmentor]


def mixer(kind: type[BatchAugmentor], **settings: Any) -> SpeakerNoiseAugmentation:
    return build_augmentor(kind(**settings))


def batch_of(*lengths: int, seed: int = 0, noise_len: int | None = None) -> UnmixedBatch:
    draws = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor(lengths)
    shape = (len(lengths), max(lengths))
    inside = torch.arange(shape[1]) < lengths_B[:, None]
    return UnmixedBatch(
        audio=torch.randn(shape, generator=draws) * inside,
        audio_len=lengths_B,
        noise=torch.randn(shape, generator=draws) * inside,
        noise_len=lengths_B.clone() if noise_len is None else torch.full_like(lengths_B, noise_len),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_probability_zero_draws_once_an_utterance_and_adds_the_noise(kind: type[BatchAugmentor]) -> None:
    batch, before = batch_of(300, 200), batch_of(300, 200)
    random.seed(5)
    done = mixer(kind, prob=0.0)(batch)
    state = random.getstate()
    random.seed(5)
    _ = random.random(), random.random()
    assert random.getstate() == state
    assert torch.equal(done.noisy_audio, before.audio + before.noise)
    assert done.noisy_audio_len is done.noise_len


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_what_every_mix_obeys(kind: type[BatchAugmentor], data: st.DataObject) -> None:
    """Speech stays as it was; all that is added lies within the utterance; energies stand in the ratio asked for."""
    lengths = data.draw(st.lists(st.integers(40, 300), min_size=1, max_size=4))
    ratio_db = data.draw(st.floats(-20, 20))
    low = data.draw(st.floats(0.2, 0.85))
    high = data.draw(st.just(low) | st.floats(low + 0.05, 0.95))
    noise_len = data.draw(st.integers(1, min(lengths)))
    more = {"max_num_segments": data.draw(st.integers(1, 4))} if kind is MultiBatchAugmentor else {}
    ratios = dict.fromkeys(("min_r_speech", "max_r_speech", "min_r_noise", "max_r_noise"), ratio_db)
    mix = mixer(
        kind, prob=1.0, noise_ratio=data.draw(st.floats(0, 1)), min_mix_rate=low, max_mix_rate=high, **ratios, **more
    )
    batch, before = batch_of(*lengths, noise_len=noise_len), batch_of(*lengths)
    random.seed(data.draw(st.integers(0, 999)))
    done = mix(batch)
    assert torch.equal(done.audio, before.audio)
    assert torch.equal(done.noisy_audio, done.audio + done.noise)
    assert torch.equal(done.noise_len, done.audio_len)
    for i, length in enumerate(lengths):
        assert not done.noise[i, length:].any()
        share = int((done.noise[i] != 0).sum()) / length
        assert low * 0.5 - 0.1 < share < high + 0.1
        if kind is MultiBatchAugmentor:
            energy = [float(torch.sum(x[i, :length] ** 2)) for x in (done.audio, done.noise)]
            assert energy[0] / energy[1] == pytest.approx(10 ** (ratio_db / 10), rel=1e-3)


def test_speech_mode_adds_another_utterance() -> None:
    batch = batch_of(200, 100, 50)
    batch.noise.zero_()
    random.seed(1)
    done = mixer(MultiBatchAugmentor, prob=1, noise_ratio=0, min_mix_rate=0.5, max_mix_rate=0.5)(batch)
    assert all(done.noise[i].any() for i in range(3))


def test_a_batch_of_one_gets_noise_even_in_speech_mode() -> None:
    batch = batch_of(100)
    batch.noise.fill_(1.0)
    done = mixer(MultiBatchAugmentor, prob=1, noise_ratio=0, min_mix_rate=0.5, max_mix_rate=0.5)(batch)
    assert len(done.noise[0].unique()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_length_of_a_mix_is_a_float32_product(kind: type[BatchAugmentor]) -> None:
    assert int(20_500 * 0.7) == 14_349
    done = mixer(kind, prob=1, noise_ratio=1, min_mix_rate=0.7, max_mix_rate=0.7)(batch_of(20_500))
    assert int((done.noise != 0).sum()) == 14_350


def test_noise_exactly_as_long_as_the_stretch_is_taken_whole() -> None:
    batch = batch_of(100, noise_len=50)
    batch.noise[:, 50:] = 0
    done = mixer(BatchAugmentor, prob=1, noise_ratio=1, min_mix_rate=0.5, max_mix_rate=0.5)(batch)
    assert int((done.noise != 0).sum()) == 50


def test_silence_gives_no_gain() -> None:
    batch = batch_of(100, 100)
    batch.noise.zero_()
    done = mixer(MultiBatchAugmentor, prob=1, noise_ratio=1, min_mix_rate=0.5, max_mix_rate=0.5)(batch)
    assert not done.noise.any() and torch.equal(done.noisy_audio, done.audio)


@given(length=st.integers(1, 20), wanted=st.integers(0, 60))
def test_repeat(length: int, wanted: int) -> None:
    signal = torch.arange(25)
    assert repeat(signal, length, wanted).tolist() == [k % length for k in range(wanted)]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"prob": 1.5}, "batch_augmentor.prob"),
    ({"noise_ratio": -0.1}, "batch_augmentor.noise_ratio"),
    ({"min_r_speech": 6.0}, "6.0 is above max_r_speech 5.0: batch_augmentor.min_r_speech"),
    ({"max_r_noise": -9}, "batch_augmentor.min_r_noise"),
    ({"min_mix_rate": 0.6, "max_mix_rate": 0.5}, "batch_augmentor.min_mix_rate"),
    ({"max_mix_rate": 1.1}, "batch_augmentor.min_mix_rate"),
    ({"prob": 1, "min_num_segments": 0}, "batch_augmentor.min_num_segments"),
    ({"prob": 1, "min_num_speakers": 5}, "batch_augmentor.min_num_speakers"),
    ({"prob": "0.5"}, "batch_augmentor.prob"),
    ({"prob": float("nan")}, "batch_augmentor.prob"),
    ({"probb": 0.5}, "batch_augmentor.probb"),
    ({"_target_": "my.SpeakerNoiseAugmentation"}, "not supported"),
    ({"_target_": None}, "not supported"),
])  # fmt: skip
def test_wrong_settings(arguments: dict[str, Any], message: str) -> None:
    section = {"_target_": f"{MODULES}.MultiSpeakerNoiseAugmentation", **arguments}
    with pytest.raises(UserError, match=message):
        read(MultiBatchAugmentor, section, "batch_augmentor")


@pytest.mark.parametrize("module", [MODULES, f"{MODULES}.augmentation"])
@pytest.mark.parametrize("name", ["SpeakerNoiseAugmentation", "MultiSpeakerNoiseAugmentation"])
def test_targets(module: str, name: str) -> None:
    """NeMo's two names of each class."""
    mixing = {"_target_": f"{module}.{name}", "prob": 0.25}
    dataset = read(Dataset, {"manifest_filepath": "m.json", "batch_size": 1, "batch_augmentor": mixing})
    assert dataset.batch_augmentor is not None
    assert type(build_augmentor(dataset.batch_augmentor)).__name__ == name


@pytest.mark.parametrize(("kind", "more", "message"), [
    (BatchAugmentor, {"min_mix_rate": 1, "max_mix_rate": 1}, "leaves no place"),
    (BatchAugmentor, {"min_mix_rate": 0.5, "max_mix_rate": 0.505}, "too near to min_mix_rate"),
    (MultiBatchAugmentor, {"min_num_speakers": 0, "max_num_speakers": 0}, "none may be drawn"),
])  # fmt: skip
def test_what_only_shows_when_mixing(kind: type[BatchAugmentor], more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixer(kind, prob=1.0, noise_ratio=0.0, **more)(batch_of(100, 100))


def test_noise_without_samples() -> None:
    with pytest.raises(UserError, match="a noise clip without samples"):
        mixer(MultiBatchAugmentor, prob=1, noise_ratio=1, min_mix_rate=0.5)(batch_of(100, 100, noise_len=0))
