"""Recordings of the port, shared with other tests, that every test replays on another build of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from train_nest import NEST

from nest_ssl.base.rng import generator_states
from nest_ssl.config.compose import data_paths
from nest_ssl.recording.evidence import Replay
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.replay import replay
from nest_ssl.run.candidate import build_candidate, run_training_loop
from nest_ssl.run.experiment import run
from tests.test_float64 import FLOAT64
from tests.test_planted_draws import EVERYTHING
from tests.test_planted_faults import OVERRIDES, recorded_once

Plant = Callable[[Any], None]


def recorded(folder: Path, *overrides: str) -> Recording:
    assert run(NEST, [*OVERRIDES, *overrides, f"output_dir={folder}"]) == 0
    return open_recording(folder, verify=False)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two steps; the second batch has padding. Nothing but weights and masks is random."""
    return open_recording(recorded_once(tmp_path_factory), verify=False)


@pytest.fixture(scope="session")
def random_reference(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The same with all of NeMo's recipe: dither, dropout, noise."""
    return open_recording(recorded_once(tmp_path_factory, None, *EVERYTHING), verify=False)


@pytest.fixture(scope="session")
def double_reference(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return open_recording(recorded_once(tmp_path_factory, None, FLOAT64), verify=False)


def replayed(reference: Recording, *plants: Plant, loop: bool = False) -> Replay:
    """The reference fed to the model that it recorded, with the plants in it; `loop`: and to its trainer."""
    trainer, model = build_candidate(NEST, data_paths(OmegaConf.create(reference.config)))
    for plant in plants:
        plant(model)
    run_loop = functools.partial(run_training_loop, trainer, model, generator_states()) if loop else None
    return replay(reference, model, precision=trainer.precision_plugin.forward_context, run_loop=run_loop)


def blamed(found: Replay) -> dict[str, set[str]]:
    """Modules of which anything came out otherwise, and in which phases."""
    modules: dict[str, set[str]] = {}
    for unit in found.units:
        if unit.outcome in ("other bits", "raised"):
            modules.setdefault(unit.module or "", set()).add(unit.phase)
    return modules
