"""Fixtures: one recording to compare with, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compare.builder import Plan, record


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of the miniature model, as `nemo`. Read it only."""
    return record(tmp_path_factory.mktemp("reference") / "nemo")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Record a candidate: ``make(after_build=...)``."""

    def recorded(**plan: object) -> Path:
        return record(tmp_path / "nest", Plan(**{"name": "nest", "version": "0.1.0", **plan}))

    return recorded


@pytest.fixture
def copy(reference: Path, tmp_path: Path) -> Path:
    """A copy of the reference, to be edited."""
    return Path(shutil.copytree(reference, tmp_path / "copy"))
