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

import pytest

from scripts import setup
from scripts.setup import Builder, Choice, Environment, SetupError
from tests.bundle.conftest import RELEASES


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment that is complete, on this Python, with a lock of its own."""
    monkeypatch.setattr(setup, "VENVS", tmp_path)
    for variable in ("PYTHON", "TORCH_INDEX", "NEMO_VERSION"):
        monkeypatch.delenv(variable, raising=False)
    lock = tmp_path / "nest.txt"
    lock.write_text("torch==2.13.0\nnumpy==2.2.6 ; python_full_version < '3.11'\nnumpy==2.4.6\n")
    made = Environment("nest", lock, ("-e", "."), ("json",), 0.1)
    made.python.parent.mkdir(parents=True)
    made.python.symlink_to(sys.executable)
    setup.finish(made, Choice(sys.executable, ""), "2.13.0+cpu")
    return made


CHOICE = Choice(sys.executable, "")


# --- When there is something to do ----------------------------------------------------------------------------------


def test_a_complete_environment_is_current(env: Environment) -> None:
    assert setup.is_current(env, CHOICE)


@pytest.mark.parametrize("choice", [Choice("/usr/bin/another", ""), Choice(sys.executable, "https://example.org/cpu")])
def test_another_choice_makes_it_anew(env: Environment, choice: Choice) -> None:
    assert not setup.is_current(env, choice)


def test_another_lock_makes_it_anew(env: Environment) -> None:
    env.lock.write_text("torch==2.13.1\n")
    assert not setup.is_current(env, CHOICE)


def test_another_place_makes_it_anew(env: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path / "moved")
    assert not setup.is_current(env, CHOICE)


@pytest.mark.parametrize("stamp", [None, "", "[1]", '{"lock": "'])
def test_without_a_whole_stamp_it_is_made_anew(env: Environment, stamp: str | None) -> None:
    (env.folder / setup.STAMP).unlink()
    if stamp is not None:
        (env.folder / setup.STAMP).write_text(stamp)
    assert not setup.is_current(env, CHOICE)


def test_a_python_that_is_gone_makes_it_anew(env: Environment) -> None:
    env.python.unlink()
    env.python.symlink_to("/nowhere/python")
    assert not setup.is_current(env, CHOICE)


def test_what_was_chosen_once_is_kept(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    link = env.folder / "python3.12"
    link.symlink_to(sys.executable)
    earlier = Choice(str(link), "https://example.org/cpu")
    setup.finish(env, earlier, "2.13.0+cpu")
    assert setup.choose([env]) == earlier
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/cu130")
    monkeypatch.setenv("PYTHON", "python3.11")
    chosen = setup.choose([env])
    assert chosen.torch_index == "https://example.org/cu130"
    assert Path(chosen.python).resolve() == Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def test_up_to_date_starts_no_pip(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(setup, "is_current", lambda env, choice: True)
    monkeypatch.setattr(setup, "stamp_of", lambda env: {"torch": "2.13.0"})
    monkeypatch.setattr(setup, "Builder", None)
    setup.main()
    assert "up to date" in capsys.readouterr().out


# --- What is installed ----------------------------------------------------------------------------------------------


def pins(lock: str) -> dict[str, set[str]]:
    return setup.locked_versions(setup.LOCKS / lock)


@pytest.mark.parametrize("lock", ["nest.txt", *(f"nemo-{release}.txt" for release in RELEASES)])
def test_locks_hold_exact_versions_only(lock: str) -> None:
    lines = [line for line in (setup.LOCKS / lock).read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[^\s*<>=]+( ; .+)?", line)] == []


def test_locks_cover_what_the_project_asks_for(root: Path) -> None:
    project = root.joinpath("pyproject.toml").read_text()
    asked = {key: re.findall(r'"([A-Za-z0-9_.-]+)"', re.findall(rf"^{key} = \[(.*?)\]$", project, re.M | re.S)[0])
             for key in ("dependencies", "test", "wandb", "dev")}  # fmt: skip
    assert len(asked["dependencies"]) > 10
    everything = [name for names in asked.values() for name in names]
    for lock, names in [("nest.txt", everything)] + [
        (f"nemo-{release}.txt", asked["dependencies"] + asked["test"] + asked["wandb"]) for release in RELEASES
    ]:
        assert {setup.canonical(name) for name in names} <= pins(lock).keys()


def test_torch_comes_first_from_its_own_index_alone(env: Environment) -> None:
    commands = [command for _, command in setup.steps(env, Choice(sys.executable, "https://example.org/cpu"))]
    with_index = [command for command in commands if "https://example.org/cpu" in command]
    assert len(with_index) == 1
    assert with_index[0][-1] == "torch==2.13.0"
    assert "--no-deps" in with_index[0]
    assert [command for command in commands if "install" in command and "-c" not in command] == []


def inventory(env: Environment, packages: dict[str, str], nemo: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "a library's greeting\n" + json.dumps({"packages": packages, "nemo": nemo})
    done = subprocess.CompletedProcess([], 0, stdout=output, stderr="")
    monkeypatch.setattr(setup.subprocess, "run", lambda *_, **__: done)


GOOD = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "pip": "23.2.1", "nest_ssl": "0.1.0"}


def test_check_accepts_what_the_lock_says(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory(env, GOOD, False, monkeypatch)
    assert setup.check(env, CHOICE) == "2.13.0+cpu"


@pytest.mark.parametrize(
    ("packages", "nemo", "says"),
    [
        ({**GOOD, "numpy": "2.5.0"}, False, "numpy 2.5.0"),
        ({**GOOD, "stowaway": "1.0"}, False, "stowaway"),
        (GOOD, True, "NeMo belongs in every environment but .venv/nest: .venv/nest."),
    ],
)
def test_check_finds_what_does_not_belong(
    env: Environment, monkeypatch: pytest.MonkeyPatch, packages: dict[str, str], nemo: bool, says: str
) -> None:
    inventory(env, packages, nemo, monkeypatch)
    with pytest.raises(SetupError, match=re.escape(says)):
        setup.check(env, CHOICE)


@pytest.mark.parametrize("release", RELEASES)
def test_check_wants_nemo_in_every_releases_environment(
    env: Environment, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    reference = env._replace(name=f"nemo-{release}")
    inventory(reference, GOOD, True, monkeypatch)
    assert setup.check(reference, CHOICE) == "2.13.0+cpu"
    inventory(reference, GOOD, False, monkeypatch)
    with pytest.raises(SetupError, match=rf"NeMo belongs in .*: \.venv/nemo-{re.escape(release)}\."):
        setup.check(reference, CHOICE)


def test_check_imports_for_real(env: Environment) -> None:
    broken = env._replace(imports=("no_such_module",))
    with pytest.raises(SetupError, match=r"does not work: \.venv/nest: .*no_such_module"):
        setup.check(broken, CHOICE)


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
         "could not install: torch: No matching distribution found for torch==2.13.0"),
        ("ERROR: Cannot install a and b\n\nERROR: ResolutionImpossible: for help visit", "Cannot install a and b"),
        ("  RuntimeError: Unsupported compiler -- at least C++11 support is needed!\n" + BUILDING, "apt install g++"),
        ("  error: command 'g++' failed: No such file or directory: 'g++'\n" + BUILDING, "texterrors must be compiled"),
        ("  a.cpp:1:10: fatal error: Python.h: No such file or directory\n" + BUILDING, "python3-dev"),
        ("  SyntaxError: invalid syntax\n" + BUILDING, "could not install: torch: Failed to build one or more wheels"),
        ("Killed", "could not install: torch"),
    ],
)  # fmt: skip
def test_pip_output_becomes_one_line(log: str, says: str) -> None:
    line = setup.explain("\n$ an earlier command\nERROR: of no interest now\n\n$ pip install\n" + log, "torch")
    assert says in line
    assert "\n" not in line
    assert "no interest" not in line


def test_too_little_disk_is_told_before_anything_starts(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 10**10, 10**9))
    with pytest.raises(SetupError, match=r"not enough disk: .*: 1\.0 GB free, 4\.0 GB needed"):
        setup.check_disk([env._replace(gigabytes=2.5), env._replace(gigabytes=1.5)])


def test_a_release_without_a_lock_is_an_error() -> None:
    with pytest.raises(SetupError, match=r"NEMO_VERSION=9\.9\.9\. Use one of: .*3\.0\.0"):
        setup.environments("9.9.9")


def test_a_wrong_python_says_so_in_one_line(root: Path) -> None:
    script = root / "scripts" / "setup.py"
    ast.parse(script.read_text(), feature_version=(3, 7))  # or an old one stops at the syntax instead
    pretend = f"import runpy, sys; sys.version_info = (3, 13); runpy.run_path({str(script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert re.fullmatch(r"error: wrong Python: .*PYTHON=python3\.11\n", done.stderr)


def test_the_first_failure_stops_the_other(env: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"nemo": "import time; time.sleep(60)", "nest": "import sys; sys.exit('ERROR: broken on purpose')"}
    monkeypatch.setattr(setup, "steps", lambda env, choice: [("work", [sys.executable, "-c", codes[env.name]])])
    started = time.monotonic()
    with pytest.raises(SetupError, match="could not install: work: broken on purpose"):
        Builder(CHOICE).build_all([env._replace(name="nemo"), env])
    assert time.monotonic() - started < 30


@pytest.fixture
def bundle(root: Path, tmp_path: Path) -> Path:
    """What setup needs, in a folder without environments."""
    for name in ("scripts/setup.py", "pyproject.toml", "docker/locks/nest.txt", "docker/locks/nemo-3.0.0.txt"):
        target = tmp_path / "bundle" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    return tmp_path / "bundle"


def start_setup(bundle: Path, environment: dict[str, str], index: str) -> subprocess.Popen[str]:
    proxies = {name: "" for name in environment if name.lower().endswith("_proxy")}
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "PIP_INDEX_URL": index}
    return subprocess.Popen(
        [sys.executable, "scripts/setup.py"], cwd=bundle, env={**environment, **proxies, **pip},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_no_network_is_told_in_one_line_and_nothing_counts(bundle: Path, environment: dict[str, str]) -> None:
    process = start_setup(bundle, environment, "http://127.0.0.1:9/simple")
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
    process = start_setup(bundle, environment, silent_index)
    logs = [bundle / ".venv" / f"{name}.log" for name in ("nemo-3.0.0", "nest")]
    deadline = time.monotonic() + 60
    while not all(log.exists() and "Looking in indexes" in log.read_text() for log in logs):
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


def test_no_permission_is_told_in_one_line(bundle: Path, environment: dict[str, str]) -> None:
    (bundle / ".venv").write_text("a file where the folder should be")
    done = start_setup(bundle, environment, "http://127.0.0.1:9/simple")
    _, stderr = done.communicate(timeout=60)
    assert done.returncode == 3
    assert stderr.count("\n") == 1
    assert ".venv" in stderr
