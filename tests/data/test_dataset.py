"""Items: at least a second, noise drawn after the audio is read, and mistakes named."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.audio import Decoding
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.dataset import AudioNoiseDataset, AudioNoiseItem, load_utterance, repeat_short
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import read_noise
from nest_ssl.data.problems import BadAudio

HOW = Decoding(16_000, strict=True)


def read_speech(path: str) -> Sequence[Entry]:
    return Corpora().read(read(Dataset, {"manifest_filepath": path, "batch_size": 1})).entries


@given(length=st.integers(0, 50), shortest=st.integers(1, 50))
def test_repeat_short(length: int, shortest: int) -> None:
    audio = repeat_short(torch.arange(1.0, length + 1), shortest)
    assert len(audio) == max(length, shortest)
    assert audio.tolist() == ([k % length + 1 for k in range(len(audio))] if length else [0] * shortest)


def test_items(wav: Callable[..., str], manifest: Callable[..., str]) -> None:
    entries = read_speech(manifest({"audio_filepath": wav("a.wav", 0.4)}, {"audio_filepath": wav("b.wav", 1.5)}))
    clips = read_noise(manifest({"audio_filepath": wav("n.wav", 1.2)}, name="noise.json")).lines
    dataset = AudioNoiseDataset(entries, clips, HOW)
    assert len(dataset) == 2
    first, second = dataset[0], dataset[1]
    assert isinstance(first, AudioNoiseItem) and isinstance(second, AudioNoiseItem)
    assert (int(first.audio_len), int(first.noise_len)) == (16_000, 16_000)
    assert (int(second.audio_len), int(second.noise_len)) == (24_000, 19_200)
    assert torch.equal(first.audio[:6_400], first.audio[6_400:12_800])
    assert torch.equal(dataset.collate([first, second]).audio_len, torch.tensor([16_000, 24_000]))


def test_a_bad_file_draws_no_noise(wav: Callable[..., str], manifest: Callable[..., str]) -> None:
    clips = read_noise(manifest({"audio_filepath": wav("n.wav", 1.2)}, name="noise.json")).lines
    dataset = AudioNoiseDataset(read_speech(manifest({"audio_filepath": "gone.wav"})), clips, HOW)
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    with pytest.raises(UserError, match=r"no such audio file: gone.wav .*manifest.json, line 1"):
        dataset[0]
    assert np.random.get_state()[1].tolist() == before


def test_errors_name_the_line(wav: Callable[..., str], manifest: Callable[..., str], tmp_path: Path) -> None:
    wav("stereo.wav", channels=2)
    soundfile.write(tmp_path / "cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), 16_000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:20_000])
    path = manifest({"audio_filepath": "stereo.wav"}, {"audio_filepath": "cut.flac"})
    messages = {0: "2 channels are left", 1: "audio that cannot be decoded"}
    for index, message in messages.items():
        with pytest.raises(UserError, match=f"{message}.*: .*manifest.json, line {index + 1}"):
            load_utterance(read_speech(path)[index], HOW)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC])
@pytest.mark.parametrize("skip", [False, True])
def test_what_the_machine_lacks_is_no_files_fault(
    number: int, skip: bool, wav: Callable[..., str], manifest: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is called bad, and with `bad_audio=skip` none is skipped, because handles or memory have run out."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    dataset = AudioNoiseDataset(read_speech(manifest({"audio_filepath": wav("a.wav")})), [], HOW, skip_bad=skip)
    monkeypatch.setattr(soundfile.SoundFile, "read", refuse)
    with pytest.raises(UserError, match=f"{os.strerror(number)}, while audio was read: .*line 1") as raised:
        dataset[0]
    assert not isinstance(raised.value, BadAudio)


def test_no_samples_become_a_second_of_silence(wav: Callable[..., str], manifest: Callable[..., str],
                                               caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    entry = read_speech(manifest({"audio_filepath": wav("none.wav", 0.0)}))[0]
    assert torch.equal(load_utterance(entry, HOW), torch.zeros(16_000))
    assert "gives no samples" in caplog.text
