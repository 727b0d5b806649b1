"""The thin scripts: each pair (.sh, .bat) says the same, and the .sh does it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.bundle.conftest import DEFAULT_NEMO

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "nemo": ("train_nemo.py", "nemo-RELEASE", "NEMO_PYTHON"),
    "nest_train": ("train_nest.py", "nest", "NEST_PYTHON"),
    "compare_outputs": ("compare_outputs.py", "nest", "NEST_PYTHON"),
}
AWKWARD = ["size=tiny", "save_steps=0,1,2", "+trainer.x=[1, 2]", "name=two words", "", "*", "$HOME", "a'b", 'a"b', "-v"]


class Said(NamedTuple):
    """What a script says, in words that do not depend on the shell."""

    comment: str
    entry: str
    venv: str
    release: list[str]  # of NeMo: the variable that names it
    variable: str
    passes_all: bool
    threads: str
    exit_code: str


def plain(comment: list[str]) -> str:
    return re.sub(r"\.(sh|bat)\b", "", "\n".join(comment)).replace("\\", "/")


def read_sh(text: str) -> Said:
    comment = plain(re.findall(r"^# ?(.*)$", text, re.MULTILINE))
    variable, same, venv = re.findall(
        r"^variable=(\w+) python=\$\{(\w+):-\$root/\.venv/([\w$-]+)/bin/python\}$", text, re.MULTILINE
    )[0]
    assert variable == same
    release = re.findall(r"^release=\$\{(\w+):-\$DEFAULT_NEMO\}$", text, re.MULTILINE)
    entry, arguments = re.findall(r'^launch "[^"]+" (\w+\.py) (.*)$', text, re.MULTILINE)[0]
    launch = (ROOT / "scripts" / "launch.sh").read_text()
    threads = re.findall(r'^    export OMP_NUM_THREADS="\$\{OMP_NUM_THREADS:-(\d+)\}"$', launch, re.MULTILINE)[0]
    (exit_code,) = set(re.findall(r"^        exit (\d+)$", launch, re.MULTILINE))
    assert launch.rstrip().endswith('exec "$python" "$root/scripts/$script" "$@"\n}')
    venv = venv.replace("$release", "RELEASE")
    return Said(comment, entry, venv, release, variable, arguments == '"$@"', threads, exit_code)


def read_bat(text: str) -> Said:
    comment = plain(re.findall(r"^rem ?(.*)$", text, re.MULTILINE))
    venv = re.findall(r'^set "python=%root%\\\.venv\\([\w%-]+)\\Scripts\\python\.exe"$', text, re.MULTILINE)[0]
    release = re.findall(r'^if defined (\w+) set "release=%\1%"$', text, re.MULTILINE)
    variable = re.findall(r'^if defined (\w+) set "python=%\1%"$', text, re.MULTILINE)[0]
    entry, arguments = re.findall(r'^"%python%" "%root%\\scripts\\(\w+\.py)" (.*)$', text, re.MULTILINE)[0]
    threads = re.findall(r'^if not defined OMP_NUM_THREADS set "OMP_NUM_THREADS=(\d+)"$', text, re.MULTILINE)[0]
    exit_code = re.findall(r"^    exit /b (\d+)$", text, re.MULTILINE)[0]
    venv = venv.replace("%release%", "RELEASE")
    return Said(comment, entry, venv, release, variable, arguments == "%*", threads, exit_code)


def test_every_script_comes_as_a_pair(root: Path) -> None:
    for suffix in (".sh", ".bat"):
        called_by_make = {"alone", "keep_size", "with_words", "clean"}
        helpers = {"launch", *called_by_make} if suffix == ".sh" else set()
        assert {path.stem for path in (root / "scripts").glob(f"*{suffix}")} == set(SCRIPTS) | helpers


@pytest.mark.parametrize("name", SCRIPTS)
def test_pairs_say_the_same(root: Path, name: str) -> None:
    sh = (root / "scripts" / f"{name}.sh").read_bytes().decode()
    bat = (root / "scripts" / f"{name}.bat").read_bytes().decode()
    assert "\r" not in sh
    assert bat.count("\n") == bat.count("\r\n")
    said = read_sh(sh.removeprefix("#!/bin/sh\n"))
    assert said == read_bat(bat.replace("\r\n", "\n"))
    assert (said.entry, said.venv, said.variable) == SCRIPTS[name]
    assert (said.passes_all, said.threads, said.exit_code) == (True, "1", "3")
    assert said.release == (["NEMO_VERSION"] if name == "nemo" else [])
    assert bat.endswith("exit /b %ERRORLEVEL%\r\n")


@pytest.mark.parametrize("how", ["plain", "link"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_arguments_arrive_as_written_from_any_folder(
    root: Path, tmp_path: Path, environment: dict[str, str], fake_python: Any, name: str, how: str
) -> None:
    entry, _, variable = SCRIPTS[name]
    fake_python.fail(entry, 4)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "a link").symlink_to(root / "scripts" / f"{name}.sh")
    (elsewhere / "another").symlink_to("a link")
    script = {"plain": os.path.relpath(root / "scripts" / f"{name}.sh", elsewhere), "link": "./another"}[how]
    environment |= {variable: str(fake_python.path), "CDPATH": str(root), "PYTHONPATH": "/another/torch"}
    done = subprocess.run([script, *AWKWARD], cwd=elsewhere, env=environment, timeout=30)
    assert done.returncode == 4
    (call,) = fake_python.calls
    assert call.pop("command", None) is None
    assert call == {"argv": [str(root / "scripts" / entry), *AWKWARD], "cwd": str(elsewhere), "threads": "1"}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("release", [DEFAULT_NEMO, "2.4.1"])
def test_without_an_environment_one_line_says_what_to_do(
    root: Path, tmp_path: Path, environment: dict[str, str], name: str, release: str
) -> None:
    if release != DEFAULT_NEMO:
        environment["NEMO_VERSION"] = release
    for path in (f"scripts/{name}.sh", "scripts/launch.sh", "docker/.env"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(root / path, tmp_path / path)
    script = tmp_path / "scripts" / f"{name}.sh"
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, timeout=30)
    python = f".venv/{SCRIPTS[name][1].replace('RELEASE', release)}/bin/python"
    hint = f"make setup NEMO_VERSION={release}" if name == "nemo" else "make setup"
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert f"no Python for this: {tmp_path}/{python}. Run {hint} in {tmp_path}, or set" in done.stderr

    (tmp_path / python).parent.mkdir(parents=True)  # somebody else's, as far as we can tell
    (tmp_path / python).touch(mode=0o644)
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert f"error: not executable for you: {tmp_path}/{python}." in done.stderr


def test_the_console_script_starts(root: Path) -> None:
    ((module, name),) = re.findall(
        r'^nest-ssl = "([\w.]+):(\w+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE
    )
    code = f"import sys; from {module} import {name}; sys.argv = ['nest-ssl', '--help']; sys.exit({name}())"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: nest-ssl VERB")
