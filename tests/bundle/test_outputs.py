"""What earlier runs have left in OUT: cleaned away, or kept when another size is recorded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def recorded(size: str) -> str:
    """The index of a recording, as far as its size goes."""
    return json.dumps({"command": ["train_nest.py", "nemo=3.0.0", f"size={size}", "run=quick"]}, indent=1)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def clean(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """In a checkout of its own, beside what the runs wrote."""
    checkout = out / "checkout"
    (checkout / "data" / "dummy_ssl").mkdir(parents=True)
    (checkout / "scripts").mkdir()
    shutil.copy(root / "scripts" / "clean.sh", checkout / "scripts")
    return subprocess.run([checkout / "scripts/clean.sh", out], capture_output=True, text=True, timeout=60)


def test_clean_removes_recordings_and_nothing_that_only_has_such_a_name(root: Path, tmp_path: Path) -> None:
    gone = ["nemo/recording.json", "nemo/step_0/x", "report/report.json", "nemo.log", ".nemo.partial-1@elsewhere/x"]
    gone += [".make.lock", "evidence/gathered.json", "evidence/floor/step_0/x"]
    kept = ["notes.txt", "twin/recording.json", "nest/precious", "nest.log", "train/recording/recording.json"]
    for name in gone + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.utime(tmp_path / ".nemo.partial-1@elsewhere", (0, 0))  # of another machine, and old
    done = clean(root, tmp_path)
    assert not (tmp_path / "checkout" / "data" / "dummy_ssl").exists()
    assert done.stderr == f"clean: {tmp_path}/nest holds no recording.json, left alone\n"
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []


def test_clean_removes_what_was_kept_of_other_sizes(root: Path, tmp_path: Path) -> None:
    ranks = ("nemo/ranks.json", "nemo/rank_0/recording.json", "nemo.rank_0.log")
    for name in (*ranks, "tiny/nemo/recording.json", "large/nest/recording.json", "large/nest.log", "small/mine"):
        put(tmp_path / name, "")
    assert clean(root, tmp_path).returncode == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "clean.sh"] == ["mine"]


def test_clean_leaves_what_is_being_written(root: Path, tmp_path: Path) -> None:
    host = socket.gethostname()
    for name, process in [("nest", os.getpid()), ("nemo", 2**22 + 1)]:  # no process has the second number
        for path in (tmp_path / name / "recording.json", tmp_path / f".{name}.partial-{process}@{host}" / "x"):
            path.parent.mkdir()
            path.touch()
    done = clean(root, tmp_path)
    assert (tmp_path / "checkout" / "data" / "dummy_ssl").exists()
    shutil.rmtree(tmp_path / "checkout")
    assert done.stderr == f"clean: {tmp_path}/nest is being written, left alone\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".nest.partial-{os.getpid()}@{host}", "nest"]


def keep(root: Path, out: Path, size: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([root / "scripts/keep_size.sh", out, size], capture_output=True, text=True, timeout=60)


def test_another_size_replaces_nothing(root: Path, environment: dict[str, str], tmp_path: Path) -> None:
    old = ["--assume-old=ready", "--assume-old=ready-nest"]
    command = ["make", "--dry-run", *old, "RUNTIME=local", "nest", "SIZE=tiny", "OUT=o u t"]
    shown = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True).stdout
    assert shown.index("scripts/keep_size.sh 'o u t' 'tiny'") < shown.index("train_nest.py")
    out = tmp_path / "out"
    assert keep(root, out, "tiny").stdout == "" and not out.exists()
    written = {"nemo/ranks.json", "nemo/rank_0/recording.json", "nemo.rank_0.log", "nest/recording.json", "nest.log",
               "report/report.json"}  # fmt: skip
    for size in ("tiny", "large", "tiny"):
        assert keep(root, out, size).returncode == 0
        for name in {*written, "train/a"}:
            put(out / name, recorded(size))
    done = keep(root, out, "large")
    notes = [f"note: {out}/{name} is of SIZE=tiny: kept in {out}/tiny\n" for name in ("report", "nemo", "nest")]
    assert done.stdout == "".join(notes)
    for size in ("tiny", "large"):
        assert {name: (out / size / name).read_text() for name in written} == dict.fromkeys(written, recorded(size))
    assert (out / "train/a").exists() and [path.name for path in out.iterdir() if path.is_file()] == []
    assert keep(root, out, "large").stdout == ""  # nothing is there


def test_what_a_recording_says_of_its_size_counts(root: Path, tmp_path: Path) -> None:
    """Whoever wrote it: two sizes may lie beside each other, and neither takes the place of another's."""
    for name, size in {"nemo": "large", "nest": "tiny", "large/nest": "large", "tiny/nemo": "tiny"}.items():
        put(tmp_path / name / "recording.json", recorded(size))
    put(tmp_path / "nest" / "more", "")
    assert keep(root, tmp_path, "tiny").stdout == f"note: {tmp_path}/nemo is of SIZE=large: kept in {tmp_path}/large\n"
    for name, size in {"large/nemo": "large", "nest": "tiny", "large/nest": "large", "tiny/nemo": "tiny"}.items():
        assert (tmp_path / name / "recording.json").read_text() == recorded(size)


def test_what_is_no_recording_is_neither_moved_nor_replaced(root: Path, tmp_path: Path) -> None:
    for name in ("nemo/a", "nest/recording.json", "tiny/nest/a"):
        put(tmp_path / name, recorded("tiny"))
    done = keep(root, tmp_path, "small")
    assert (done.returncode, done.stderr) == (
        3,
        f"error: {tmp_path}/tiny/nest is nothing of ours, and nest of SIZE=tiny would go there. Move it away\n",
    )
    assert (tmp_path / "nemo/a").exists() and (tmp_path / "nest/recording.json").exists()
    assert (tmp_path / "tiny/nest/a").exists()


# --- One at a time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", ["align", "nemo", "nest", "compare"])
def test_while_a_make_is_at_work_another_is_refused_before_anything_is_lost(
    root: Path, environment: dict[str, str], tmp_path: Path, fake_python: Any, goal: str
) -> None:
    """As where the port is done and NeMo still trains: no lock of a recording says so."""
    put(tmp_path / "out" / "nest" / "recording.json", recorded("large"))
    old = [f"--assume-old={name}" for name in ("setup", "setup-nest", "ready", "ready-nest", "data")]
    pythons = [f"{name}_PYTHON={fake_python.path}" for name in ("NEMO", "NEST")]
    words = ["RUNTIME=local", *pythons, goal, "SIZE=tiny", f"OUT={tmp_path / 'out'}"]

    def make() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *old, *words], cwd=root, env=environment, capture_output=True, text=True, timeout=60
        )

    first = [root / "scripts" / "alone.sh", "exclusive", tmp_path / "out", "sh", "-c", "echo begun; read end"]
    with subprocess.Popen(first, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as at_work:
        assert at_work.stdout is not None and at_work.stdout.readline() == "begun\n"
        done = make()
    said = f"error: another make is at work in this folder: {tmp_path / 'out'}. Wait until it has ended, or choose"
    assert done.returncode == 2 and [line for line in done.stderr.splitlines() if line.startswith(said)]
    assert fake_python.scripts == [] and (tmp_path / "out" / "nest" / "recording.json").exists()
    assert make().returncode == 0 and fake_python.scripts != []
    assert (tmp_path / "out" / "large" / "nest").exists() == (goal != "compare")


def test_align_keeps_others_away_from_its_first_trainer_to_its_report(make: Any, fake_python: Any) -> None:
    for parallel in ("0", "1"):
        assert make("align", f"PARALLEL={parallel}").returncode == 0
    locks = {Path(call["argv"][0]).name: call["lock"] for call in fake_python.calls if "lock" in call}
    expected = {"train_nemo.py": "exclusive", "train_nest.py": "exclusive", "compare_outputs.py": "shared"}
    assert {name: locks[name] for name in expected} == expected


@pytest.mark.parametrize("flock", ["flock", ""])
def test_two_may_read_at_once(root: Path, tmp_path: Path, environment: dict[str, str], flock: str) -> None:
    """With the system's own tool and, where it has none, with Python."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "out").mkdir()
    tools = ["bash", "env", "mkdir", "sleep", *filter(None, [flock])]
    for tool in tools:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    environment |= {"PATH": str(tmp_path / "bin")}
    script, out = str(root / "scripts" / "alone.sh"), str(tmp_path / "out")

    def code(outer: str, inner: str) -> int:
        second = ["bash", "-c", '"$@"; exit $?', "-", script, inner, out, "bash", "-c", "exit 5"]
        return subprocess.run([script, outer, out, *second], env=environment, capture_output=True).returncode

    assert code("shared", "shared") == 5
    assert code("shared", "exclusive") == code("exclusive", "shared") == code("exclusive", "exclusive") == 3


def test_with_nothing_to_lock_with_it_runs_and_says_so(root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    """Neither flock nor Python: the second one is let in, as both are without the script."""
    for tool in ("bash", "env", "mkdir"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    script, out = str(root / "scripts" / "alone.sh"), str(tmp_path / "out")
    command = [script, "exclusive", out, script, "exclusive", out, "bash", "-c", "exit 5"]
    done = subprocess.run(command, env=environment | {"PATH": str(tmp_path)}, capture_output=True, text=True)
    said = f"note: no flock and no python3 here: a second make in {out} is not noticed"
    assert (done.returncode, done.stderr.splitlines()) == (5, [said] * 2)


@pytest.mark.parametrize(("tool", "code"), [("flock", 1), ("flock", 66), ("python3", 1), ("python3", 2)])
def test_where_locking_is_refused_it_runs_and_says_so(
    root: Path, tmp_path: Path, environment: dict[str, str], tool: str, code: int
) -> None:
    """As on a network disk, by a flock without these options, or a Python that does not start: nobody is blamed."""
    for name in ("bash", "env", "mkdir"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / tool).write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / tool).chmod(0o755)
    command = [root / "scripts" / "alone.sh", "exclusive", tmp_path / "out", "bash", "-c", "exit 5"]
    done = subprocess.run(command, env=environment | {"PATH": str(tmp_path)}, capture_output=True, text=True)
    said = f"note: {tmp_path / 'out'} cannot be locked here: a second make in it is not noticed"
    assert (done.returncode, done.stderr.splitlines()) == (5, [said])


def test_what_a_command_leaves_behind_holds_the_folder_until_it_ends(root: Path, tmp_path: Path) -> None:
    """As a trainer that still cleans up, or a worker of one that was killed."""
    script, out = root / "scripts" / "alone.sh", tmp_path / "out"
    end, release = os.pipe()
    first = [script, "exclusive", out, "bash", "-c", f"read -u {end} &"]
    assert subprocess.run(first, pass_fds=[end], timeout=60).returncode == 0
    second = [script, "shared", out, "true"]
    assert subprocess.run(second, capture_output=True, timeout=60).returncode == 3
    for each in (release, end):
        os.close(each)
    assert subprocess.run(second, capture_output=True, timeout=60).returncode == 0


def test_a_folder_to_be_read_is_not_made(root: Path, tmp_path: Path) -> None:
    command = [root / "scripts" / "alone.sh", "shared", tmp_path / "misspelt", "sh", "-c", "exit 5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (5, "", [])


def test_a_folder_that_cannot_be_locked_is_left_to_the_command(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [root / "scripts" / "alone.sh", "exclusive", tmp_path / "file", "sh", "-c", "exit 5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (5, "")
