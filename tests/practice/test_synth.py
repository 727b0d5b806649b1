"""The synthesiser: integers only, loud enough, and shaped like speech."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nest_ssl.practice import synth

NOISES = [synth.white_noise, synth.pink_noise, synth.brown_noise, synth.machine_noise]


def test_source_has_no_floating_point() -> None:
    """Not one float literal, true division or import of a mathematics library: nothing that a machine could round."""
    tree = ast.parse(Path(synth.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), node.lineno
        assert not isinstance(node, ast.Div), "true division"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert set(names) <= {"__future__", "collections.abc", "typing"}


def test_cosines() -> None:
    exact = [math.cos(2 * math.pi * 10 * k / synth.RATE) for k in range(801)]
    assert len(synth.COSINE) == 801
    assert max(abs(value / synth.ONE - e) for value, e in zip(synth.COSINE, exact, strict=True)) < 2 / synth.ONE


@pytest.mark.parametrize(("hertz", "bandwidth"), [(300, 70), (1500, 100), (3500, 250), (6200, 900)])
def test_resonator_rings_at_its_frequency(hertz: int, bandwidth: int) -> None:
    resonator = synth.Resonator()
    resonator.tune(hertz, bandwidth)
    ringing = np.array([resonator.step(x) for x in [1 << 20] + [0] * 4095], dtype=float)
    gain = abs(np.fft.rfft(ringing))
    gain_at_zero = gain[0] / (1 << 20)
    assert abs(int(np.argmax(gain)) * synth.RATE / 4096 - hertz) < max(20, bandwidth / 4)
    assert 0.9 < gain_at_zero < 1.1


@pytest.mark.parametrize("make", [synth.utterance, *NOISES])
@pytest.mark.parametrize("length", [1, 79, 16_001])
def test_length_range_and_seed(make: Callable[[int, int], list[int]], length: int) -> None:
    samples = make(3, length)
    assert len(samples) == length
    assert all(isinstance(s, int) for s in samples)
    assert -32768 <= min(samples) <= max(samples) <= 32767
    assert samples == make(3, length)
    if length > 1:
        assert samples != make(4, length)


def test_an_utterance_has_voice_hiss_and_pauses() -> None:
    samples = np.array(synth.utterance(5, 4 * synth.RATE), dtype=float).reshape(-1, 400)
    spectrum = abs(np.fft.rfft(samples * np.hanning(400))) ** 2
    energy_db = 10 * np.log10(spectrum.sum(1) + 1)
    low = spectrum[:, : 1000 // 40].sum(1) / spectrum.sum(1)  # below 1 kHz
    loud = energy_db > energy_db.max() - 30
    assert (energy_db < energy_db.max() - 50).mean() > 0.1, "pauses"
    assert (low[loud] > 0.8).mean() > 0.3, "voiced"
    assert (low[loud] < 0.2).mean() > 0.05, "hissing"


def test_voice_has_harmonics() -> None:
    """The strongest repetition of a loud stretch lies where a human voice's does."""
    samples = np.array(synth.utterance(5, 2 * synth.RATE), dtype=float)
    start = max(range(0, len(samples) - 1600, 400), key=lambda s: abs(samples[s : s + 1600]).sum())
    piece = samples[start : start + 1600]
    correlation = np.correlate(piece, piece, "full")[1599:]
    lag = 60 + int(np.argmax(correlation[60:200]))
    assert 80 < synth.RATE / lag < 270
    assert correlation[lag] > 0.5 * correlation[0]


def test_colours_of_noise() -> None:
    """White is flat, pink falls 3 dB an octave, brown 6."""
    falls = []
    for make in NOISES[:3]:
        power = abs(np.fft.rfft(np.array(make(1, 1 << 16), dtype=float))) ** 2
        octaves = [10 * np.log10(power[1 << k : 2 << k].mean()) for k in range(9, 14)]
        falls.append((octaves[0] - octaves[-1]) / 4)
    assert falls == pytest.approx([0, 3, 6], abs=0.7)
