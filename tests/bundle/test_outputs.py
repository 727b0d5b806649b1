"""What earlier runs have left in OUT: cleaned away, or kept when another size is recorded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path


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
    gone += ["evidence/gathered.json", "evidence/floor/step_0/x"]
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
