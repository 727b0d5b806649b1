"""Tests of the bundle itself: what make, the scripts and setup do, with stand-ins for the programs that they start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASES = ("2.4.1", "2.7.3", "3.0.0")  # of NeMo: those that have a lock
DEFAULT_NEMO = RELEASES[-1]


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def environment() -> dict[str, str]:
    """The environment without what an outer `make test` and the caller's own settings put there."""
    settings = (
        "SIZE RUN SEED STEPS BATCHES DEVICE OUT ARGS NEMO_ARGS NEST_ARGS COMPARE_ARGS RUNTIME THREADS NEMO_VERSION "
        "GENERATIONS TEST_LOGS "
        "TORCH_INDEX PYTHON NEMO_PYTHON NEST_PYTHON OMP_NUM_THREADS MAKEFLAGS MAKEOVERRIDES MAKELEVEL MFLAGS "
        "TORCH BASE_IMAGE WHEELS PIP_CONFIG CA_BUNDLE DATA MEMORY SHM GPUS BUILD_ARGS UPGRADE "
        "NEST_SSL_COMMAND PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE EVIDENCE EXPLAIN PARALLEL"
    ).split()
    return {name: value for name, value in os.environ.items() if name not in settings}


HELD = """
def held(lock):
    import fcntl
    for how, name in ((fcntl.LOCK_SH, 'exclusive'), (fcntl.LOCK_EX, 'shared')):
        try:
            fcntl.flock(lock.open('a'), how | fcntl.LOCK_NB)
        except BlockingIOError:
            return name
"""


class FakePython:
    """A program that writes down how it was called, and fails when called with a word that was given to `fail`.

    What starts the two trainers of align it is itself: they are called with this.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._notes, self._codes = folder / "fake python", folder / "calls", folder / "codes.json"
        self._codes.write_text("{}")
        self.path.write_text(
            f"#!{sys.executable} -S\n"  # without site-packages: it starts in two thirds of the time
            "import json, os, pathlib, sys\n"
            f"{HELD}"
            "if sys.argv[1].endswith('side_by_side.py'): os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
            "call = {'argv': sys.argv[1:], 'cwd': os.getcwd(), 'threads': os.environ.get('OMP_NUM_THREADS')}\n"
            "if 'setup.py' in call['argv'][0]: call['NEMO_VERSION'] = os.environ.get('NEMO_VERSION')\n"
            "lock = pathlib.Path(os.environ.get('OUT', ''), '.make.lock')\n"
            "if lock.exists(): call['lock'] = held(lock)\n"
            "if 'train' in call['argv'][0]: call['command'] = os.environ.get('NEST_SSL_COMMAND')\n"
            "names = {'PYTHONPATH', 'PYTHONDONTWRITEBYTECODE'} & {*os.environ}\n"
            "call |= {name: os.environ[name] for name in names}\n"
            f"open({str(self._notes)!r}, 'a').write(json.dumps(call) + '\\n')\n"
            f"codes = json.load(open({str(self._codes)!r}))\n"
            "print('my last line:', sys.argv[1:])\n"
            "words = {pathlib.Path(sys.argv[1]).name, *sys.argv[1:]}\n"
            "sys.exit(max((code for word, code in codes.items() if word in words), default=0))\n"
        )
        self.path.chmod(0o755)

    def fail(self, word: str, code: int) -> None:
        self._codes.write_text(json.dumps({word: code}))

    @property
    def calls(self) -> list[dict]:
        return [json.loads(line) for line in self._notes.read_text().splitlines()] if self._notes.exists() else []

    @property
    def scripts(self) -> list[str]:
        return [Path(call["argv"][0]).name for call in self.calls]


@pytest.fixture
def fake_python(tmp_path: Path) -> FakePython:
    return FakePython(tmp_path)


@pytest.fixture
def make(
    environment: dict[str, str], fake_python: FakePython
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`make("align", "SIZE=tiny")`, with `fake_python` for both environments; no setup, no engine, no move.

    A folder that it makes in the repository goes again.
    """
    made = []

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        pythons = [f"NEMO_PYTHON={fake_python.path}", f"NEST_PYTHON={fake_python.path}"]
        old = [f"--assume-old={name}" for name in ("setup", "setup-nest", "ready", "ready-nest", "kept")]
        outs = [Path(one.removeprefix("OUT=")) for one in arguments if one.startswith("OUT=")]
        made.extend(path for out in outs if out.parts and not (path := ROOT / out.parts[0]).exists())
        if {"align", "compare", "explain"} & {
            *arguments
        } and not outs:  # another may be at work in the repository's own
            arguments = (*arguments, f"OUT={fake_python.path.parent / 'outputs'}")
        command = ["make", "--no-print-directory", *old, "RUNTIME=local", *pythons, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    yield run
    for path in made:
        shutil.rmtree(path, ignore_errors=True)
