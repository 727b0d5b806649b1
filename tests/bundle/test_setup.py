"""`make setup`: when it has something to do, what it installs, and what it says when it cannot."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pins
import pytest
import setup
from setup import Choice, Environment, Maker, SetupError

from tests.bundle.conftest import RELEASES


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment that is complete, on this Python."""
    locks = tmp_path / "locks"
    locks.mkdir()
    for name in ("build", "torch-cpu", "torch-cuda", "nest-cpu", "nest-cuda", "nest-dev"):
        (locks / f"{name}.lock").write_text(f"{name}\n")
    monkeypatch.setattr(setup, "VENVS", tmp_path)
    monkeypatch.setattr(setup, "LOCKS", locks)
    for variable in ("PYTHON", "TORCH_INDEX", "NEMO_VERSION"):
        monkeypatch.delenv(variable, raising=False)
    made = Environment("nest", "nest", 0.1)
    made.python.parent.mkdir(parents=True)
    made.python.symlink_to(sys.executable)
    stamp(made, CHOICE)
    return made


def stamp(env: Environment, choice: Choice) -> None:
    (env.folder / setup.STAMP).write_text(json.dumps({**env.wanted(choice), "torch": "2.13.0+cpu"}))


CHOICE = Choice(sys.executable, "")


# --- When there is something to do ----------------------------------------------------------------------------------


def test_a_complete_environment_is_current(env: Environment) -> None:
    assert env.is_current(CHOICE)


@pytest.mark.parametrize("choice", [Choice("/usr/bin/another", ""), Choice(sys.executable, "https://example.org/cpu")])
def test_another_choice_makes_it_again(env: Environment, choice: Choice) -> None:
    assert not env.is_current(choice)


@pytest.mark.parametrize("name", ["build", "torch-cuda", "nest-cpu", "nest-dev"])
def test_another_lock_makes_it_again(env: Environment, name: str) -> None:
    (setup.LOCKS / f"{name}.lock").write_text("torch==2.13.1\n")
    assert not env.is_current(CHOICE)


def test_another_place_makes_it_again(env: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "pyproject.toml").touch()
    monkeypatch.setattr(setup, "ROOT", tmp_path / "moved")
    assert not env.is_current(CHOICE)


@pytest.mark.parametrize("stamp", [None, "", "[1]", '{"lock": "'])
def test_without_a_whole_stamp_it_is_made_again(env: Environment, stamp: str | None) -> None:
    (env.folder / setup.STAMP).unlink()
    if stamp is not None:
        (env.folder / setup.STAMP).write_text(stamp)
    assert not env.is_current(CHOICE)


def test_somebody_elses_environment_is_said(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(env.python))

    monkeypatch.setattr(setup.subprocess, "run", refuse)
    with pytest.raises(SetupError, match=f"not executable for you: {re.escape(str(env.python))}"):
        env.is_current(CHOICE)


def test_a_python_that_is_gone_makes_it_again(env: Environment) -> None:
    env.python.unlink()
    env.python.symlink_to("/nowhere/python")
    assert not env.is_current(CHOICE)


def test_what_was_chosen_once_is_kept(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    link = env.folder / "python3.12"
    link.symlink_to(sys.executable)
    earlier = Choice(str(link), "https://example.org/cpu")
    stamp(env, earlier)
    assert setup.choose([env]) == earlier
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/cu130")
    monkeypatch.setenv("PYTHON", "python3.11")
    chosen = setup.choose([env])
    assert chosen.torch_index == "https://example.org/cu130"
    assert Path(chosen.python).resolve() == Path(getattr(sys, "_base_executable", sys.executable)).resolve()


@pytest.mark.parametrize(("words", "says"), [([], "setup: up to date"), (["--quiet"], "")])
def test_up_to_date_starts_no_pip(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    monkeypatch.setattr(Environment, "is_current", lambda env, choice: True)
    monkeypatch.setattr(Environment, "stamp", lambda env: {"torch": "2.13.0"})
    monkeypatch.setattr(setup, "Maker", None)
    setup.main(words)
    assert capsys.readouterr().out.startswith(says)


# --- What is installed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["nest", *(f"nemo-{release}" for release in RELEASES)])
def test_versions_are_exact(lock: str) -> None:
    lines = [line for line in (pins.LOCKS / f"{lock}.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s*<>=]+( ; .+)?", line)] == []


@pytest.mark.parametrize("build", ["cpu", "cuda"])
@pytest.mark.parametrize("lock", ["nest", *(f"nemo-{release}" for release in RELEASES)])
def test_the_locks_of_an_environment_cover_what_the_project_asks_for(root: Path, lock: str, build: str) -> None:
    project = root.joinpath("pyproject.toml").read_text()
    lists = {key: re.findall(rf"^{key} = \[(.*?)\](?:  #.*)?$", project, re.MULTILINE | re.DOTALL)[0]
             for key in ("dependencies", "train", "test", "wandb", "dev")}  # fmt: skip
    asked = {key: re.findall(r'"([A-Za-z0-9_.-]+)"', text) for key, text in lists.items()}
    assert len(asked["dependencies"]) > 5 and len(asked["train"]) > 8
    names = {name for key, names in asked.items() if key != "dev" or lock == "nest" for name in names}
    there = pins.locked_versions(*Environment(lock[:4], lock, 0).locks(build)).keys()
    assert {pins.canonical(name) for name in names} <= there
    assert {"pip", "flit-core", "setuptools", "torch"} <= there


class Steps(Maker):
    """Writes down the steps, and has pip offer a torch."""

    def __init__(self, choice: Choice, file: str) -> None:
        super().__init__(choice)
        self.file, self.steps, self.order = file, {}, list[str]()

    def _step(self, env: Environment, label: str, command: list[str]) -> str:
        self.steps[label] = command
        self.order.append(f"{env.lock}: {label}")
        env.folder.mkdir(parents=True, exist_ok=True)
        if label == "a torch on offer":
            version = self.file.split("-")[1].replace("%2B", "+")
            offer = {"metadata": {"version": version}, "download_info": {"url": f"https://x.org/{self.file}"}}
            (env.folder / "torch.json").write_text(json.dumps({"install": [offer]}))
        return "facts"


CPU = "torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl"
INDEX = "https://example.org/cpu"


@pytest.mark.parametrize(
    ("file", "build", "index"),
    [(CPU, "cpu", ""), (CPU, "cpu", INDEX), ("torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl", "cuda", "")],
)
def test_every_file_is_checked_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, file: str, build: str, index: str
) -> None:
    monkeypatch.setattr(setup, "VENVS", tmp_path)
    maker = Steps(Choice("python", index), file)
    env = Environment("nest", "nest", 0)
    assert maker._make(env) == file.split("-")[1].replace("%2B", "+")
    installs = {label: words for label, words in maker.steps.items() if "install" in words and "--dry-run" not in words}
    assert [label for label, words in installs.items() if "--require-hashes" not in words] == ["this package"]
    assert "--no-index" in installs["this package"]
    assert [label for label, words in installs.items() if {"--no-deps", "--no-build-isolation"} - set(words)] == []
    locks = [Path(word).name for words in installs.values() for word in words if word.endswith(".lock")]
    assert locks == ["build.lock", "torch.lock", f"torch-{build}.lock", f"nest-{build}.lock", "nest-dev.lock"]
    assert [label for label, words in maker.steps.items() if INDEX in words] == (
        ["a torch on offer", f"torch {file.split('-')[1].replace('%2B', '+')}"] if index else []
    )
    (torch,) = pins.read_lock(env.folder / "torch.lock")
    assert (torch.name, torch.version) == ("torch", {"cpu": "2.13.0+cpu", "cuda": "2.13.0"}[build])
    assert "is not checked" not in capsys.readouterr().out


def test_the_larger_environment_does_not_wait_for_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "VENVS", tmp_path)
    maker = Steps(Choice("python", ""), CPU)
    maker.make(setup.environments(["nest", "nemo"], "3.0.0"))
    of_torch = [step for step in maker.order if step.endswith((" on offer", " torch needs"))]
    assert of_torch == [f"{lock}: {step}" for lock in ("nemo-3.0.0", "nest")
                        for step in ("a torch on offer", "what torch needs")]  # fmt: skip


@pytest.mark.parametrize("version", ["2.13.0%2Bcu126", "2.13.0%2Bcpu"])
def test_a_torch_that_is_in_no_lock_is_installed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    monkeypatch.setattr(setup, "VENVS", tmp_path)
    maker = Steps(Choice("python", INDEX), f"torch-{version}-cp310-cp310-manylinux_2_28_x86_64.whl")
    maker._make(Environment("nest", "nest", 0))
    shown = version.replace("%2B", "+")
    assert f"torch {shown} is in no lock: its hash is not checked" in capsys.readouterr().out
    assert "--any-torch" in maker.steps["the check"]
    installs = {label: words for label, words in maker.steps.items() if "install" in words}
    unchecked = [label for label, words in installs.items() if "--require-hashes" not in words]
    assert unchecked == ["a torch on offer", f"torch {shown}", "what torch needs", "this package"]


# --- What it says when it cannot ------------------------------------------------------------------------------------

DOWN = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)': /simple/pluggy/\n"
BUILDING = "  ERROR: Failed building wheel for texterrors\nERROR: Failed to build one or more wheels\n"


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (DOWN + "ERROR: No matching distribution found for pluggy", "no answer from the package index: pip's default"),
        ("Looking in indexes: http://a.b/simple\n" + DOWN, "no answer from the package index: http://a.b/simple"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "no space left"),
        ("The virtual environment was not created successfully because ensurepip is not available.", "python3-venv"),
        ("ERROR: Could not find a version that satisfies\nERROR: No matching distribution found for torch==2.13.0\n",
         "setup stopped at torch: No matching distribution found for torch==2.13.0"),
        ("ERROR: Cannot install a and b\n\nERROR: ResolutionImpossible: for help visit", "Cannot install a and b"),
        ("  RuntimeError: Unsupported compiler -- at least C++11 support is needed!\n" + BUILDING, "apt install g++"),
        ("  error: command 'g++' failed: No such file or directory: 'g++'\n" + BUILDING, "texterrors must be compiled"),
        ("  a.cpp:1:10: fatal error: Python.h: No such file or directory\n" + BUILDING, "python3-dev"),
        ("  SyntaxError: invalid syntax\n" + BUILDING, "setup stopped at torch: Failed to build one or more wheels"),
        ("Killed", "setup stopped at torch: Killed"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    numpy==2.4.6 from https://x/y.whl:\n"
         "        Expected sha256 12\n", "a download has another hash than the lock: numpy==2.4.6"),
    ],
)  # fmt: skip
def test_pip_output_becomes_one_line(log: str, says: str) -> None:
    line = setup.explain(log, "torch")
    assert says in line
    assert "\n" not in line


def test_too_little_disk_is_said_before_anything_starts(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 10**10, 10**9))
    both = [env._replace(gigabytes=2.5), env._replace(gigabytes=1.5)]
    monkeypatch.setattr(setup, "environments", lambda *_: both)
    monkeypatch.setattr(Environment, "is_current", lambda *_: False)
    with pytest.raises(SetupError, match=r"not enough disk: .*: 1\.0 GB free, 4\.0 GB needed"):
        setup.main([])


def test_words_that_setup_does_not_know_change_nothing() -> None:
    with pytest.raises(SetupError, match=r"usage: setup\.py .*; not --help"):
        setup.main(["--help"])


def test_a_release_without_a_lock_is_an_error() -> None:
    with pytest.raises(SetupError, match=r"NEMO_VERSION=9\.9\.9\. Use one of: .*3\.0\.0"):
        setup.environments(["nest"], "9.9.9")


def test_the_oldest_release_says_which_python_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 13, 0))
    assert [env.lock for env in setup.environments(["nest"], "2.4.1")] == ["nest"]
    assert [env.lock for env in setup.environments(["nemo"], "3.0.0")] == ["nemo-3.0.0"]
    with pytest.raises(SetupError, match=r"NeMo 2\.4\.1 needs Python 3\.10 to 3\.12"):
        setup.environments(["nemo"], "2.4.1")


def test_a_wrong_python_says_so_in_one_line(root: Path) -> None:
    script = root / "scripts" / "setup.py"
    ast.parse(script.read_text(), feature_version=(3, 7))  # or an old one stops at the syntax instead
    pretend = f"import runpy, sys; sys.version_info = (3, 14); runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert re.fullmatch(r"error: wrong Python: .*PYTHON=python3\.11\n", done.stderr)


def test_the_first_failure_stops_the_other(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"nemo": "import time; time.sleep(60)", "nest": "import sys; sys.exit('ERROR: broken on purpose')"}

    def work(maker: Maker, env: Environment) -> str:
        env.log.write_text("")
        return maker._step(env, "work", [sys.executable, "-c", codes[env.lock]])

    monkeypatch.setattr(Maker, "_make", work)
    started = time.monotonic()
    with pytest.raises(SetupError, match="setup stopped at work: broken on purpose"):
        Maker(CHOICE).make([env._replace(lock="nemo"), env])
    assert time.monotonic() - started < 30


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Path:
    """What setup needs, in a folder without environments."""
    locks = [path.relative_to(root).as_posix() for path in pins.LOCKS.iterdir()]
    for name in ("scripts/setup.py", "scripts/pins.py", "pyproject.toml", "docker/.env", *locks):
        target = tmp_path / "bundle" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    return tmp_path / "bundle"


def start_setup(bundle: Path, environment: dict[str, str], index: str, *words: str) -> subprocess.Popen[str]:
    proxies = {name: "" for name in environment if name.lower().endswith("_proxy")}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_INDEX_URL": index}
    return subprocess.Popen(
        [sys.executable, "scripts/setup.py", *words], cwd=bundle, env={**environment, **proxies, **pip},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_no_network_is_one_line_and_nothing_counts(bundle: Path, environment: dict[str, str]) -> None:
    process = start_setup(bundle, environment, "http://127.0.0.1:9/simple", "nest")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3
    assert stderr.count("\n") == 1
    assert "no answer from the package index: http://127.0.0.1:9/simple" in stderr
    assert list(bundle.glob(f".venv/*/{setup.STAMP}")) == []


@pytest.fixture
def silent_index() -> Iterator[str]:
    """An index that takes the call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


def test_a_killed_setup_stops_pip_and_does_not_count(
    bundle: Path, environment: dict[str, str], silent_index: str
) -> None:
    process = start_setup(bundle, environment, silent_index, "nest")
    log = bundle / ".venv" / "nest.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "Looking in indexes" in log.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted: what is unfinished does not count; run make setup again\n"
    assert list(bundle.glob(f".venv/*/{setup.STAMP}")) == []
    assert [pid for pid, command in processes() if str(bundle) in command and "pip" in command] == []


def processes() -> Iterator[tuple[int, str]]:
    """Process ids and command lines, where the system shows them (Linux)."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended meanwhile


def test_no_permission_is_one_line(bundle: Path, environment: dict[str, str]) -> None:
    (bundle / ".venv").write_text("a file where the folder should be")
    done = start_setup(bundle, environment, "http://127.0.0.1:9/simple")
    _, stderr = done.communicate(timeout=60)
    assert done.returncode == 3
    assert stderr.count("\n") == 1
    assert ".venv" in stderr
