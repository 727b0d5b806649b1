"""Batches of a model without noise: the audio as it is, and the characters of its transcript."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.loader import build_dataloader
from nest_ssl.data.manifest import read_speech
from nest_ssl.data.skipping import SkippedAudio


@pytest.fixture
def section(tmp_path: Path) -> Dataset:
    """Three utterances of 0.5, 2 and 1 s, of which the last is no audio file."""
    for name, seconds in {"a": 0.5, "b": 2.0}.items():
        soundfile.write(tmp_path / f"{name}.wav", np.full(int(seconds * 16_000), 0.1), 16_000)
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    texts = {"a": "aé1", "b": "", "c": "b"}
    lines = [{"audio_filepath": f"{name}.wav", "duration": None, "text": text} for name, text in texts.items()]
    (tmp_path / "m.json").write_text("\n".join(map(json.dumps, lines)))
    return read(Dataset, {"manifest_filepath": str(tmp_path / "m.json"), "batch_size": 3})


def test_a_batch_is_padded_and_short_audio_stays_short(section: Dataset) -> None:
    skipped = SkippedAudio()
    loader = build_dataloader(section, 16_000, noisy=False, skipped=skipped)
    assert loader is not None
    audio, lengths, characters, counts = next(iter(loader))
    assert lengths.tolist() == [8000, 32_000] and counts.tolist() == [2, 0]
    assert audio.shape == (2, 32_000) and audio.dtype == torch.float32
    assert not audio[0, 8000:].any() and audio[0, :8000].all()
    assert characters.tolist() == [[10, 1], [0, 0]] and characters.dtype == torch.int64  # of string.printable
    assert skipped.utterances == 1


def test_bad_audio_stops_unless_it_is_skipped(section: Dataset) -> None:
    loader = build_dataloader(section, 16_000, noisy=False)
    assert loader is not None
    with pytest.raises(UserError, match=r"c\.wav"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"duration": ...}, "no duration"),
        ({"token_labels": [1]}, "token_labels is not read"),
        ({"text": ..., "text_filepath": "a.txt"}, "text_filepath is not read"),
        ({"text": 3}, "text is not a string"),
    ],
)
def test_lines_that_cannot_be_read_for_their_text(tmp_path: Path, change: dict[str, object], said: str) -> None:
    line = {"audio_filepath": "/a.wav", "duration": 1.0, "text": "x"} | change
    path = tmp_path / "m.json"
    path.write_text(json.dumps({key: value for key, value in line.items() if value is not ...}))
    with pytest.raises(UserError, match=f"{said}.*line 1"):
        read_speech(str(path), transcripts=True)
    assert read_speech(str(path)).lines[0].text == ""  # with noise, texts are not looked at
