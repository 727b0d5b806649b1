"""How far rounding moves the features of a validation: measured of its own audio, and nothing is changed by it."""

from __future__ import annotations

import random
import unittest.mock
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from nest_ssl.base.rng import generator_states, read_states, restore_generators
from nest_ssl.compare.evidence import Evidence, Floors
from nest_ssl.compare.findings import Spot
from nest_ssl.compare.rules.float64 import Float64Rule
from nest_ssl.compare.rules.noise_floor import NoiseFloorRule
from nest_ssl.compare.values import Comparer
from nest_ssl.config.parts import Preprocessor
from nest_ssl.model.features import AudioToMelSpectrogramPreprocessor
from nest_ssl.recording.clock import Moment, Phase
from nest_ssl.recording.evidence import VALIDATION_FLOOR, FloorEntry, ValidationFloor, read_evidence
from nest_ssl.run.floor.evaluation import EvaluationFloor
from tests.run.test_noise_floor import record


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.preprocessor = AudioToMelSpectrogramPreprocessor(Preprocessor())
        self.layer, self.behind = nn.Linear(Preprocessor().features, 2), nn.Dropout()

    def forward(self, audio: Tensor, lengths: Tensor) -> Any:
        features, _ = self.preprocessor(input_signal=audio, length=lengths)
        return self.behind(self.layer(features.transpose(1, 2)))


class Noise(nn.Module):
    """Draws in evaluation, from every generator that there is."""

    def forward(self, audio: Tensor) -> Tensor:
        return audio * (2.0 + torch.rand(()) + random.random() + float(np.random.rand()))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.preprocessor, self.layer = Noise(), nn.Linear(8, 2)

    def forward(self, audio: Tensor, lengths: Tensor) -> Any:
        return self.layer(self.preprocessor(audio))


def entries_of(model: nn.Module, audio: Tensor) -> list[FloorEntry]:
    floor, trainer = EvaluationFloor(2, 1), SimpleNamespace(precision_plugin=Precision())
    with torch.inference_mode():  # as validations run
        floor.attach(model)
        model.eval()(audio.clone(), torch.full((len(audio),), audio.shape[1]))
        model.train()
        entries = floor.measure(trainer, model)  # type: ignore[arg-type]
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert {one.place.module for one in entries} == {"preprocessor"}
    return entries


def measured(model: nn.Module, audio: Tensor) -> dict[str, float]:
    return {one.place.path: one.relative_largest for one in entries_of(model, audio)}


def test_it_depends_on_the_audio_and_changes_nothing() -> None:
    """Of a tone, which leaves most channels to rounding, it is far larger than of noise."""
    model, generator = Small(), torch.Generator().manual_seed(0)
    audio = 0.1 * torch.randn(2, 16000, generator=generator)
    tone = 0.9 * torch.sin(2 * torch.pi * torch.tensor([[100.0], [440.0]]) * torch.arange(16000) / 16000)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before |= {name: tensor.clone() for name, tensor in model.named_buffers()}
    torch.manual_seed(3)
    drawn, _ = torch.get_rng_state(), measured(model, audio)
    floors = [measured(model, one) for one in (audio, tone)]
    assert floors[1]["0"] > 10 * floors[0]["0"] > 0 and floors[0]["1"] == 0.0
    after = {**model.state_dict(), **dict(model.named_buffers())}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(part.training for part in model.modules())
    with torch.random.fork_rng():
        torch.set_rng_state(drawn)
        for one in (audio, audio, tone):  # what the validations themselves draw, if anything
            model.eval()(one.clone(), torch.full((2,), 16000))
        expected = torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), expected)


def test_what_a_part_draws_in_evaluation_each_repeat_draws_and_training_does_not_miss() -> None:
    model, audio = Noisy(), torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    saved, before = generator_states(), read_states()
    model.eval()(audio, audio)
    expected = read_states()
    assert all(expected[name] != before[name] for name in ("python", "numpy", "torch_cpu"))
    restore_generators(saved)
    found = measured(model, audio)
    assert 0 < found[""] < 1e-6, "of other numbers it would be as large as they are"
    assert read_states() == expected


NOISE = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
TIME, SPECTRUM = torch.arange(16000) / 16000, torch.fft.rfft(NOISE.double())
BAND = torch.where((torch.arange(8001) >= 300) & (torch.arange(8001) <= 3400), SPECTRUM, 0.0)
AUDIO = {
    "noise": NOISE,
    "telephone": (torch.fft.irfft(BAND) * 32768).round().float() / 32768,
    "quieter": NOISE / 1000,
    "tone": 0.5 * torch.sin(2 * torch.pi * torch.tensor([[100.0], [440.0]]) * TIME),
    "silence": (NOISE / 1000 * 32768).round() / 32768,
}


@pytest.mark.parametrize("kind", AUDIO)
def test_of_any_audio_a_rewrite_is_within_it_and_a_fault_of_every_row_is_not(kind: str) -> None:
    """On the telephone channels of rounding alone make most of the whole's floor, and hide nothing of every row."""
    model, audio = Small(), AUDIO[kind]
    floor = next(one for one in entries_of(model, audio) if one.place.path == "0")
    place = floor.place.address
    evidence = Evidence(floors={(0, 0): Floors({place: floor}, {}, 2)}, features={place: floor})
    evidence.unweighted = frozenset({"preprocessor"})
    spot, given = Spot("validation", Moment(1, Phase.VALIDATION), place), (audio, torch.full((2,), 16000))
    features = model.preprocessor.eval()
    made, own = features(input_signal=audio, length=given[1])[0], features.featurizer
    matmul, order = torch.matmul, torch.randperm(own.fb.shape[2], generator=torch.Generator().manual_seed(0))
    with unittest.mock.patch("torch.matmul", lambda fb, power: matmul(fb[..., order], power[:, order])):
        summed = features(input_signal=audio, length=given[1])[0]
    hidden = [2 * floor.relative_largest] if kind == "telephone" else []  # in the whole
    for off in (0.0, 3e-4, *hidden):
        other = torch.where(made == 0, summed, summed + off)
        found = Comparer(NoiseFloorRule(evidence)).leaf(spot, made, other)
        assert (found is None or found.within) is (off == 0.0), found
        single = Float64Rule(evidence, {(0, place): floor.relative_largest}, {place})
        found = Comparer(single).leaf(spot, made, other)
        assert (found is None or found.within) is (off == 0.0), found


@pytest.mark.parametrize("repeats", [0, 1])
def test_it_is_written_where_a_noise_floor_is_asked_for(tmp_path: Path, repeats: int) -> None:
    made = record(tmp_path / "nest", *([f"noise_floor={repeats}"] if repeats else []))
    path = made.path / VALIDATION_FLOOR
    assert made.validations() and path.is_file() is bool(repeats)
    if repeats:
        found = read_evidence(path, ValidationFloor)
        assert found.repeats == repeats and {one.place.module for one in found.entries} == {"preprocessor"}
        assert 0 < max(one.relative_largest for one in found.entries) < 1e-4
