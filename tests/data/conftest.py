"""Small audio files and manifests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

RATE = 16_000


@pytest.fixture
def wav(tmp_path: Path) -> Callable[..., str]:
    """`wav("a.wav", seconds=1.5, seed=0, rate=16000, channels=1)` writes noise and returns the file's name."""

    def write(name: str, seconds: float = 1.5, seed: int = 0, rate: int = RATE, channels: int = 1) -> str:
        shape = int(seconds * rate) if channels == 1 else (int(seconds * rate), channels)
        soundfile.write(tmp_path / name, np.random.default_rng(seed).uniform(-0.5, 0.5, shape), rate)
        return name

    return write


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[..., str]:
    """`manifest({...}, "raw text", name="m.json")` writes a line each and returns the path."""

    def write(*lines: dict[str, Any] | str, name: str = "manifest.json") -> str:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / name).write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def section(wav: Callable[..., str], manifest: Callable[..., str]) -> dict[str, Any]:
    """A data section with three utterances of 1.5, 2 and 1.2 s."""
    lengths = {"a.wav": 1.5, "b.wav": 2.0, "c.wav": 1.2}
    lines = [{"audio_filepath": wav(n, s, i), "duration": s} for i, (n, s) in enumerate(lengths.items())]
    return {"manifest_filepath": manifest(*lines), "sample_rate": RATE, "batch_size": 2, "shuffle": False}
