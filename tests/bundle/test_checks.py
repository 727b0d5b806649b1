"""The check of an environment and of an image, and that of types: with stand-ins for what they look at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import check_types
import pytest


@pytest.fixture
def check(root: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`check_environment.py`, with stand-ins for the modules and the packages that it looks for."""

    def run(trainer: str, packages: dict[str, str], nemo: bool, *words: str) -> subprocess.CompletedProcess[str]:
        lock = tmp_path / "a.lock"
        lock.write_text("torch==2.13.0+cpu\nnumpy==2.2.6 ; python_full_version < '3.11'\nnumpy==2.4.6\npip==26.3\n")
        code = f"""
import importlib, importlib.util, runpy, subprocess, sys, types
from types import SimpleNamespace as Space
sys.path.insert(0, {str(root / "scripts")!r})
import importlib.metadata as metadata
metadata.distributions = lambda: [Space(metadata={{"Name": n}}, version=v) for n, v in {list(packages.items())!r}]
importlib.import_module = lambda name: None
importlib.util.find_spec = lambda name: {nemo!r}
sys.modules["torch"] = Space(version=Space(cuda=None))
subprocess.run = lambda *_, **__: Space(returncode=0, stdout="No broken requirements found.")
sys.argv = ["x", {trainer!r}, *{list(words)!r}, {str(lock)!r}]
runpy.run_path({str(root / "scripts" / "check_environment.py")!r}, run_name="__main__")
"""
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    return run


GOOD = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "pip": "26.3", "nest_ssl": "0.1.0"}


@pytest.mark.parametrize(("trainer", "nemo"), [("nest", False), ("nemo", True)])
def test_check_accepts_what_the_locks_say(check: Any, trainer: str, nemo: bool) -> None:
    done = check(trainer, GOOD, nemo)
    assert (done.returncode, done.stderr) == (0, "")
    assert "numpy 2.4.6, torch 2.13.0+cpu, no CUDA; No broken requirements found." in done.stdout


@pytest.mark.parametrize(
    ("trainer", "packages", "nemo", "says"),
    [
        ("nest", {**GOOD, "numpy": "2.5.0"}, False, "numpy 2.5.0"),
        ("nest", {**GOOD, "pip": "23.2.1"}, False, "pip 23.2.1"),
        ("nest", {**GOOD, "torch": "2.13.0"}, False, "torch 2.13.0"),
        ("nest", {**GOOD, "stowaway": "1.0"}, False, "stowaway"),
        ("nest", GOOD, True, "NeMo belongs in NeMo's environment"),
        ("nemo", GOOD, False, "NeMo belongs in NeMo's environment"),
    ],
)
def test_check_finds_what_does_not_belong(check: Any, trainer: str, packages: dict, nemo: bool, says: str) -> None:
    done = check(trainer, packages, nemo)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert says in done.stderr


def test_check_takes_another_torch_where_it_was_asked_for(check: Any) -> None:
    packages = {**GOOD, "torch": "2.13.0+cu126", "nvidia-cudnn-cu12": "9.9"}
    assert check("nest", packages, False, "--any-torch").returncode == 0
    assert check("nest", {**packages, "numpy": "2.5.0"}, False, "--any-torch").returncode == 1


# --- Types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "errors", "code"), [("data", 1, 0), ("data", 2, 1), ("base", 1, 1), ("data", 0, 0)])
def test_more_errors_than_a_room_has_already_are_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: str, errors: int, code: int
) -> None:
    output = f"nest_ssl/{room}/a.py:7: error: wrong [x]\n" * errors
    done = SimpleNamespace(returncode=int(errors > 0), stdout=output, stderr="")
    monkeypatch.setattr(check_types.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(check_types, "CEILING", {"data": 1})
    assert check_types.main() == code
    assert ("a.py:7: error" in capsys.readouterr().err) == bool(code)


def test_a_checker_that_breaks_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(returncode=2, stdout="", stderr="no such module")
    monkeypatch.setattr(check_types.subprocess, "run", lambda *_, **__: done)
    assert check_types.main() == 1
