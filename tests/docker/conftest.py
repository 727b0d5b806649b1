"""Tests of the images themselves, with a real engine. Without one they are skipped, and say so.

BASE_IMAGE and TORCH choose what the images are built on, NEMO_VERSION the release, as they do for `make images`.
"""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pins import default_nemo

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def sh(*command: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository, with more environment variables."""
    words = [str(word) for word in command]
    # NeMo's and the port's Python are chosen by make itself; an outer make's words are not for the one started here.
    inner = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(words, cwd=ROOT, env={**inner, **settings}, capture_output=True, text=True, timeout=1500)


def engine_answers() -> bool:
    try:
        return sh("docker", "info").returncode == 0
    except OSError:
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and not engine_answers():
        for item in here:
            item.add_marker(pytest.mark.skip(reason="no Docker engine can be reached"))
    for item in here:
        item.add_marker(pytest.mark.timeout(1500))


@pytest.fixture(scope="session")
def torch_build() -> str:
    return os.environ.get("TORCH") or "cpu"


@pytest.fixture(scope="session")
def release() -> str:
    return os.environ.get("NEMO_VERSION") or default_nemo()


@pytest.fixture(scope="session")
def images(torch_build: str, release: str) -> dict[str, str]:
    """Both images, built and proved by `make images`: names by trainer."""
    done = sh("make", "images", f"TORCH={torch_build}", f"NEMO_VERSION={release}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No broken requirements found." in done.stdout or "is ready" not in done.stdout
    return {"nemo": f"nest-ssl/nemo:{release}-{torch_build}", "nest": f"nest-ssl/nest:{torch_build}"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for a container to write to."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def container() -> Iterator[str]:
    """A name for a container, which is gone afterwards."""
    name = f"nest-ssl-test-{uuid.uuid4().hex[:8]}"
    yield name
    sh("docker", "rm", "--force", name)
