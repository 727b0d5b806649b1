"""Drawing noise: which draws are made, and the sum that decides about more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nest_ssl.base.errors import UserError
from nest_ssl.data import noise
from nest_ssl.data.lines import Place
from nest_ssl.data.manifest import NoiseClip, read_noise
from nest_ssl.data.problems import BadAudio

RATE = 16_000
Draw = tuple[str, tuple[Any, ...]]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[Draw]:
    """Every call of NumPy's global generator."""
    made: list[Draw] = []
    for name in ("randint", "uniform", "randn"):
        original = getattr(np.random, name)

        def spy(*arguments: Any, _name: str = name, _original: Any = original, **named: Any) -> Any:
            made.append((_name, arguments))
            return _original(*arguments, **named)

        monkeypatch.setattr(np.random, name, spy)
    np.random.seed(0)
    return made


def clip(path: Path, samples: np.ndarray[Any, Any], duration: Any = "full", **how: Any) -> NoiseClip:
    soundfile.write(path, samples, RATE, **how)
    seconds = len(samples) / RATE if duration == "full" else duration
    return NoiseClip(str(path), seconds, 0.0, Place("noise.json", 1))


def test_no_clips_no_draws(draws: list[Draw]) -> None:
    signal, length = noise.draw_noise([], RATE, 100)
    assert torch.equal(signal, torch.zeros(100)) and int(length) == 100 and draws == []
    assert length.dtype == torch.int64


def test_a_short_clip_is_padded(draws: list[Draw], tmp_path: Path) -> None:
    signal, length = noise.draw_noise([clip(tmp_path / "n.wav", np.full(50, 0.5))], RATE, 80)
    assert int(length) == 50
    assert torch.equal(signal, torch.cat([torch.full((50,), 0.5), torch.zeros(30)]))
    assert draws == [("randint", (1,))]


def test_a_long_clip_gives_a_drawn_piece(draws: list[Draw], tmp_path: Path) -> None:
    signal, length = noise.draw_noise([clip(tmp_path / "n.wav", np.full(RATE, 0.5))], RATE, 800)
    assert int(length) == len(signal) == 800
    assert draws == [("randint", (1,)), ("uniform", (0, 1 - 0.05))]


def test_a_clip_of_unknown_length_is_cut(draws: list[Draw], tmp_path: Path) -> None:
    signal, length = noise.draw_noise([clip(tmp_path / "n.wav", np.full(900, 0.5), None)], RATE, 800)
    assert int(length) == len(signal) == 800 and draws == [("randint", (1,))]


def test_silence_becomes_white_noise(draws: list[Draw], tmp_path: Path) -> None:
    signal, _ = noise.draw_noise([clip(tmp_path / "n.wav", np.zeros(500))], RATE, 800)
    assert [name for name, _ in draws] == ["randint", "randint", "randn"]
    assert draws[1:] == [("randint", (-90, -46)), ("randn", (500,))]
    assert 0 < signal[:500].abs().max() < 0.05 and not signal[500:].any()


def test_a_negative_sum_is_drawn_again_a_hundred_times(draws: list[Draw], tmp_path: Path) -> None:
    noise.draw_noise([clip(tmp_path / "n.wav", np.full(900, -0.5))], RATE, 800)
    assert [name for name, _ in draws] == ["randint"] + ["uniform"] * 100


def test_bad_clips_cost_their_draws(draws: list[Draw], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stereo = clip(tmp_path / "s.wav", np.ones((900, 2)))
    gone = NoiseClip(str(tmp_path / "gone.wav"), 1.0, 0.0, Place("noise.json", 7))
    garbled = clip(tmp_path / "g.wav", np.ones(900), "long")
    signal, length = noise.draw_noise([stereo, gone, garbled], RATE, 800)
    assert not signal.any() and int(length) == 800
    assert [name for name, _ in draws].count("randint") == 20
    assert "noise.json, line 7" in caplog.text and "this utterance has none" in caplog.text


@pytest.mark.parametrize(("name", "message"), [
    ("nan.wav", "samples that are no numbers"), ("slow.wav", "a sampling rate of 11 Hz in its header"),
])  # fmt: skip
def test_a_clip_that_nemo_would_train_on_and_must_not_be(name: str, message: str, tmp_path: Path) -> None:
    clip(tmp_path / "nan.wav", np.array([0.5] * 800 + [np.nan]), subtype="FLOAT")
    clip(tmp_path / "slow.wav", np.full(900, 0.5))
    data = bytearray((tmp_path / "slow.wav").read_bytes())
    data[24:28] = (11).to_bytes(4, "little")
    (tmp_path / "slow.wav").write_bytes(data)
    bad = NoiseClip(str(tmp_path / name), None, 0.0, Place("noise.json", 3))
    with pytest.raises(UserError, match=rf"{message}.*: .*{name} \(noise.json, line 3\)") as raised:
        noise.draw_noise([bad], RATE, 800)
    assert not isinstance(raised.value, BadAudio), "no utterance is to be skipped for it"


@pytest.mark.parametrize("seed", range(5))
def test_a_good_clip_is_found_among_bad(seed: int, tmp_path: Path, wav: Callable[..., str],
                                        manifest: Callable[..., str]) -> None:  # fmt: skip
    (tmp_path / "bad.wav").write_bytes(b"")
    clips = read_noise(manifest({"audio_filepath": "bad.wav"}, {"audio_filepath": wav("good.wav")})).lines
    np.random.seed(seed)
    assert noise.draw_noise(clips, RATE, 800)[0].any()


@given(arrays(np.float32, st.integers(0, 300), elements=st.floats(-1, 1, width=32)))
def test_running_sum_is_pythons(samples: np.ndarray[Any, Any]) -> None:
    assert noise.running_sum(samples) == sum(samples)


@pytest.mark.parametrize("seed", range(20))
def test_running_sum_of_a_whole_clip(seed: int) -> None:
    """Where the true sum is nearly zero, rounding decides; `np.sum` decides otherwise for some of these."""
    samples = np.random.default_rng(seed).uniform(-1, 1, 48_000).astype(np.float32)
    samples[-1] = -sum(samples[:-1])
    total = noise.running_sum(samples)
    assert (total > 0, total == 0) == (sum(samples) > 0, sum(samples) == 0)
    assert total == sum(samples)


def test_numpy_sums_would_decide_otherwise() -> None:
    rows = [np.random.default_rng(seed).uniform(-1, 1, 48_000).astype(np.float32) for seed in range(10)]
    assert any(np.sum(row) != sum(row) for row in rows)
