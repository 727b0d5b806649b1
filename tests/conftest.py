"""What all tests share."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from nest_ssl.config import compose


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: where processes share the files, no long one is left to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """No power is cut in a test: most recordings are deleted before the system would have written them to the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """Modules are a million objects, which the garbage collector need not look through again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _garbage_goes() -> Iterator[None]:
    """A trainer and its model refer to each other: few objects, so that Python sees no need, and megabytes each."""
    yield
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _files_composed_once() -> Iterator[None]:
    """Hydra reads our files and merges the groups in half a second: once for each choice of groups, then copies."""
    original, composed = compose._compose_groups, dict[tuple[str, ...], DictConfig]()

    def compose_once(folder: Path, name: str, groups: list[str]) -> DictConfig:
        if folder != compose.ROOT / "conf":
            return original(folder, name, groups)
        if (key := (name, *groups)) not in composed:
            composed[key] = original(folder, name, groups)
        return copy.deepcopy(composed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_compose_groups", compose_once)
        yield


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Python for programs that need torch: see `warm.py`."""
    from tests.warm import warm_python  # NeMo before 3.0 installs a package called `tests`, and hides this one

    with warm_python(tmp_path_factory.mktemp("python")) as executable:
        yield executable
