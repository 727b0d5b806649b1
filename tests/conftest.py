"""What all tests share."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import runpy
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from nest_ssl.config import compose

HERE = Path(__file__).parent


# Files that take more than ten seconds of a core, longest first.
LONG = [HERE / name for name in (
    "selftest/test_quick.py", "test_planted_faults.py", "run/test_noise_floor.py", "bench/test_run.py",
    "train/checkpoint/test_resume.py", "train/checkpoint/test_killed.py", "recording/test_damage.py",
    "cli/test_explained.py", "replay/test_loop.py", "replay/test_planted.py", "cli/test_compare.py",
    "bench/test_cpu.py", "test_planted_draws.py", "bundle/test_wheel.py", "bundle/test_setup.py",
)]  # fmt: skip
assert [path.name for path in LONG if not path.is_file()] == [], "named here, and gone"
gc.disable()  # until all is imported, which makes a million objects and no garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then others with slow tests: where processes share them, no long one is left to the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    rank = {path: number for number, path in enumerate(LONG)}
    items.sort(key=lambda item: (rank.get(item.path, len(LONG)), item.path not in slow))


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """No power is cut in a test: most recordings are deleted before the system would have written them to the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _what_is_imported_is_no_garbage() -> None:
    """Modules are a million objects, which the garbage collector need not look through again and again.

    Nor for every 700 objects: it took 14 of 440 seconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _garbage_goes() -> Iterator[None]:
    """A trainer and its model refer to each other: few objects, so that Python sees no need, and megabytes each.

    What is left then lasts for the session, and is not looked through again.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _loader_workers_go() -> Iterator[None]:
    """Those of a loader left in the middle of an epoch are sent away while it is whole.

    As garbage it would send them nothing: its queues are closed first, and it waits 5 s for each worker.
    """
    yield
    if multiprocessing.active_children():
        for left in [one for one in gc.get_objects() if type(one) is _MultiProcessingDataLoaderIter]:
            left._shutdown_workers()


@pytest.fixture
def crashes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tracebacks of this test's crashes go, in place of the system's temporary folder.

    All else that is temporary goes there too, sockets of loader workers among it: its path is short.
    """
    folder = tmp_path_factory.mktemp("c")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_traceback_is_left() -> Iterator[None]:
    """In the system's temporary folder, by a crash that a test made or met: those go to `crashes`."""
    folder = Path(tempfile.gettempdir())
    before = set(folder.glob("nest-ssl-crash-*.txt"))
    yield
    left = [path for path in folder.glob("nest-ssl-crash-*.txt") if path not in before]
    assert [path for path in left if str(HERE) in path.read_text()] == []  # others run beside these


@pytest.fixture(scope="session", autouse=True)
def _files_composed_once() -> Iterator[None]:
    """Hydra reads our files and merges the groups in half a second: once for each choice of groups, then copies."""
    once = runpy.run_path(str(HERE / "warmed.py"))["composing_once"]  # NeMo before 3.0 hides our `tests`
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compose, "_compose_groups", once(compose._compose_groups))
        patch.setattr(compose, "_parse", functools.cache(compose._parse))
        yield


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Python for programs that need torch: see `warm.py`. Processes that share the tests have one together."""
    warm_python = runpy.run_path(str(HERE / "warm.py"))["warm_python"]
    folder, owner = tmp_path_factory.getbasetemp(), os.getpid()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder, owner = folder.parent, os.getppid()
    (folder := folder / "python").mkdir(exist_ok=True)
    with ExitStack() as stack:
        with FileLock(folder / "lock"):
            executable = stack.enter_context(warm_python(folder, owner=owner))
        yield executable
