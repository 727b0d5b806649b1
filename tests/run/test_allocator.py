"""Freed memory is kept, where the environment sets nothing of the allocator: counted in pages that the kernel gives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from nest_ssl.base.home import ROOT
from nest_ssl.cli.train import train
from nest_ssl.run.subject import Subject

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another C library")

BLOCKS = """
import resource, torch
from nest_ssl.run.allocator import keep_freed_memory
print({asks})
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):  # the first blocks are a few bytes too small for the next, with what aligning takes
    torch.ones(1 << 23)
before = pages()
for _ in range(40):
    torch.ones(1 << 23)
print(pages() - before)
"""
IN_ALL = 40 * (4 << 23) // 4096


def allocate(asks: str = "keep_freed_memory()", **variables: str) -> tuple[str, int]:
    """What keeping freed memory returned, and the pages that tensors were given which take the places of others."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = {**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    code = BLOCKS.format(asks=asks)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    kept, pages = done.stdout.split()
    return kept, int(pages)


def test_what_is_freed_is_used_again() -> None:
    kept, pages = allocate()
    assert kept == "True" and pages < IN_ALL / 8
    assert allocate(asks="None")[1] > IN_ALL / 2


@pytest.mark.parametrize("variable", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_environment_decides(variable: str) -> None:
    kept, pages = allocate(**{variable: "131072"})
    assert kept == "False" and pages > IN_ALL / 2


@pytest.mark.parametrize("name", ["nemo", "nest"])
def test_both_trainers_keep_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    begun: Callable[..., int] = lambda subject, cfg, words: asked.append("recorded") or 0  # noqa: E731
    monkeypatch.setattr("nest_ssl.cli.train.keep_freed_memory", lambda: asked.append("kept"))
    monkeypatch.setattr("nest_ssl.run.experiment.record", begun)
    assert train(Subject(name=name, package="", load=dict, build_model=dict), ["size=tiny"]) == 0
    assert asked == ["kept", "recorded"]
