"""What an `augmentor` does to one utterance, and what it draws."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.perturb import Perturbations
from nest_ssl.releases import GENERATIONS

RATE = 1000


def perturbed(augmentor: dict[str, Any], release: str = "3.0", samples: int = 1000) -> np.ndarray[Any, Any]:
    section = {"manifest_filepath": "a.json", "batch_size": 1, "augmentor": augmentor}
    random.seed(5)
    np.random.seed(5)
    perturb = Perturbations(read(Dataset, section).augmentor, RATE, GENERATIONS[release])
    return perturb(np.arange(1, samples + 1, dtype=np.float32))


@pytest.mark.parametrize(
    ("shift", "release", "first", "last"),
    [(200, "3.0", 201, 0), (-200, "3.0", 0, 800), (5000, "3.0", 0, 0), (5000, "2.7", 1, 1000), (0.4, "3.0", 1, 1000)],
)
def test_a_shift(shift: float, release: str, first: float, last: float) -> None:
    found = perturbed({"shift": {"prob": 1, "min_shift_ms": shift, "max_shift_ms": shift}}, release)
    assert (found[0], found[-1], len(found)) == (first, last, 1000)


def test_a_shift_by_all_there_is_is_rounded_as_nemos() -> None:
    """1001 / 1000 * 1000 milliseconds are a little less than 1001: one sample is left."""
    found = perturbed({"shift": {"prob": 1, "min_shift_ms": 5000, "max_shift_ms": 5000}}, samples=1001)
    assert found[0] == 1001 and not found[1:].any()


def test_gain_silence_and_noise() -> None:
    assert perturbed({"gain": {"prob": 1, "min_gain_dbfs": 20, "max_gain_dbfs": 20}})[9] == pytest.approx(100)
    ends = {"min_start_silence_secs": 0.1, "max_start_silence_secs": 0.1, "min_end_silence_secs": 0.3}
    found = perturbed({"silence": {"prob": 1, **ends, "max_end_silence_secs": 0.3, "value": 7}})
    assert (len(found), found[99], found[100], found[-1]) == (1400, 7, 1, 7)
    noisy = perturbed({"white_noise": {"prob": 1, "min_level": -20, "max_level": -19}})
    assert (noisy - np.arange(1, 1001)).std() == pytest.approx(0.1, rel=0.1)


def test_speed_and_segments() -> None:
    rates = {"min_speed_rate": 0.5, "max_speed_rate": 0.5, "num_rates": 1}
    assert len(perturbed({"speed": {"prob": 1, "sr": RATE, "resample_type": "fft", **rates}})) == 500
    stretched = perturbed({"time_stretch": {"prob": 1, "n_fft": 16, **rates}})
    assert len(stretched) == 2000 and stretched.dtype == np.float32
    assert len(perturbed({"random_segment": {"prob": 1, "duration_sec": 0.25}})) == 250
    assert len(perturbed({"random_segment": {"prob": 1, "duration_sec": 1.5}})) == 1000
    loud = perturbed({"random_segment": {"prob": 1, "duration_sec": 0.25, "min_rms_db": 57.5, "max_trials": 200}})
    assert loud[0] > 600, "drawn again until it was loud"


def test_one_that_may_not_happen_draws_once_and_a_seed_is_obeyed() -> None:
    random.seed(5)
    random.random()
    after = random.getstate()
    assert len(perturbed({"gain": {"prob": 0.0}})) == 1000 and random.getstate() == after
    perturbed({"gain": {"prob": 0.0, "rng": 9}})
    random.seed(9)
    random.random()
    assert random.getstate() != after
