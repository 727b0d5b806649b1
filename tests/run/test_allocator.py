"""Freed memory is kept, where the environment sets nothing of the allocator: counted in pages that the kernel gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nest_ssl.base.home import ROOT
from nest_ssl.run.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="another C library")

BLOCKS = """
import ctypes, resource, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages: whatever the system's are, a block has as many
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
ASKED = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from nest_ssl.run.allocator import keep_freed_memory
print(keep_freed_memory())
"""
FORKED = """
import os, torch
from pathlib import Path
from nest_ssl.run.allocator import keep_freed_memory
def megabytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024 - before
before = 0
before = megabytes()
keep_freed_memory()
blocks = [torch.ones(1 << 23) for _ in range(16)]
del blocks
print(megabytes(), flush=True)
if os.fork() == 0:
    print(megabytes(), flush=True)
    os._exit(0)
os.wait()
"""
TRAINED = """
import runpy, sys, types
from pathlib import Path
def megabytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024
def record(subject, cfg, words):
    before = megabytes()
    b"x" * (100 << 20)
    print(megabytes() - before, 100)
sys.modules["nest_ssl.run.experiment"] = types.SimpleNamespace(record=record)
sys.argv = {words}
runpy.run_path({script!r}, run_name="__main__")
"""
NEST_SSL = ["nest_ssl/cli/main.py", "train", "nest"]
IN_ALL = 40 * (4 << 23) // 4096
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
PLAIN |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def allocate(asks: str = "keep_freed_memory()", **variables: str) -> tuple[str, int]:
    """What keeping freed memory returned, and the pages that tensors were given which take the places of others."""
    code = BLOCKS.format(asks=asks)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**PLAIN, **variables}, capture_output=True, text=True, check=True
    )
    kept, pages = done.stdout.split()
    return kept, int(pages)


def test_what_is_freed_is_used_again() -> None:
    kept, pages = allocate()
    assert kept == "True" and pages < IN_ALL / 8
    assert allocate(asks="None")[1] > IN_ALL / 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")],
)
def test_the_environment_decides(variable: str, value: str) -> None:
    kept, pages = allocate(**{variable: value})
    assert kept == "False" and pages > IN_ALL / 2


@pytest.mark.parametrize(
    ("variable", "value"), [("MALLOC_ARENA_MAX", "4"), ("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=4096")]
)
def test_what_is_of_other_things_does_not(variable: str, value: str) -> None:
    """The images set the first of them."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED], env={variable: value}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"]


def test_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("there is none to open"))
    assert keep_freed_memory() is False


def test_a_fork_is_not_given_what_is_kept() -> None:
    """What loader workers would hold a second time, as soon as training writes there again."""
    done = subprocess.run([sys.executable, "-c", FORKED], env=PLAIN, capture_output=True, text=True, check=True)
    own, forked = map(int, done.stdout.split())
    assert own > 400 and forked < 100


@pytest.mark.parametrize("words", [["scripts/train_nemo.py"], ["scripts/train_nest.py"], NEST_SSL])
def test_both_trainers_keep_it(words: list[str], tmp_path: Path) -> None:
    """As they are started, in a process that measures where the training would begin."""
    code = TRAINED.format(script=str(ROOT / words[0]), words=[*words, "size=tiny"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=PLAIN, capture_output=True, text=True, check=True
    )
    kept, asked = map(int, done.stdout.split())
    assert 0.9 * asked < kept < 1.5 * asked
