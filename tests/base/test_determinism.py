"""The seed decides every generator, and the flags say what they are."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nest_ssl.base.determinism import flags, seed_all, set_determinism
from nest_ssl.base.errors import UserError
from nest_ssl.base.rng import generator_states, restore_generators, rng_digests


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_the_same_seed_gives_the_same_draws() -> None:
    seed_all(5)
    first = _draw()
    seed_all(5)
    assert _draw() == first
    seed_all(6)
    assert all(a != b for a, b in zip(_draw(), first, strict=True))


def test_restored_generators_draw_the_same(tmp_path: Path) -> None:
    seed_all(5)
    np.random.randn(), random.gauss(0, 1)  # each keeps a second normal number back
    torch.save(generator_states(), tmp_path / "states.pt")
    digests, drawn = rng_digests(), (_draw(), np.random.randn(3).tolist(), random.gauss(0, 1))
    seed_all(6)
    restore_generators(torch.load(tmp_path / "states.pt", weights_only=True))
    assert rng_digests() == digests and (_draw(), np.random.randn(3).tolist(), random.gauss(0, 1)) == drawn


@pytest.mark.parametrize(
    ("generator", "draw"),
    [("python", random.random), ("numpy", np.random.rand), ("torch_cpu", lambda: torch.rand(1))],
)
def test_one_draw_changes_one_digest(generator: str, draw: object) -> None:
    seed_all(1)
    before = rng_digests()
    draw()  # type: ignore[operator]
    after = rng_digests()
    assert {name for name in before if before[name] != after[name]} == {generator}


def test_flags_are_set_and_told() -> None:
    set_determinism()
    told = flags()
    assert told["deterministic_algorithms"] and told["cudnn_deterministic"]
    assert not told["cudnn_benchmark"] and not told["matmul_tf32"] and told["matmul_precision"] == "highest"


@pytest.mark.parametrize("seed", [-1, 2**32, 99999999999, None, 1.5, True, "7"])
def test_what_is_no_seed_is_refused(seed: object) -> None:
    before = rng_digests()
    with pytest.raises(UserError, match="not a seed"):
        seed_all(seed)  # type: ignore[arg-type]
    assert rng_digests() == before


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_first_and_the_last_seed_are_taken(seed: int) -> None:
    seed_all(seed)
    assert torch.initial_seed() == seed


def test_a_comparer_needs_no_lightning() -> None:
    script = "import nest_ssl.base.determinism, nest_ssl.base.rng, sys; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == 0
