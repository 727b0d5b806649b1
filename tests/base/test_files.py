"""Files and folders are there whole or as they were, what killed processes leave goes, and locks hold."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nest_ssl.base import files
from nest_ssl.base.errors import UserError

HERE = socket.gethostname()


def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("content", ["日本\n", b"\x00\r\n"])
def test_a_file_is_written(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "f"
    files.write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [p.name for p in path.parent.iterdir()] == ["f"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_umask_holds(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write_atomically(tmp_path / "f", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("fails", ["os.fsync", "os.replace", "pathlib.Path.write_bytes"])
def test_what_fails_leaves_the_earlier_file(tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomically(tmp_path / "f", "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, fail)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(tmp_path / "f", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_text() == "old"


def test_file_and_folder_are_synced_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note(number: int) -> None:
        said.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", lambda *a: (said.append("rename"), replace(*a)))
    files.write_atomically(tmp_path / "f", "x")
    assert said == ["file", "rename", "folder"]


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "f").write_text(content)
    return path


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_folder_takes_its_place(
    tmp_path: Path, exchange: bool, earlier: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "run"
    if earlier:
        folder(target, "old")
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    files.replace_folder(folder(files.partial_path(target), "new"), target)
    assert (target / "f").read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_names_are_exchanged_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("there is a moment without a target"))
    files.replace_folder(folder(files.partial_path(tmp_path / "run"), "new"), folder(tmp_path / "run", "old"))
    assert (tmp_path / "run" / "f").read_text() == "new"


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_killed_while_replacing(tmp_path: Path, killed_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an exchange of names: at every moment one of the two is whole, and the next run puts it in place."""
    target, steps, rename = tmp_path / "run", 0, os.rename
    new = folder(files.partial_path(target), "new")
    folder(target, "old")

    def killed(*paths: Path) -> None:
        nonlocal steps
        steps += 1
        if steps == killed_at:
            raise KeyboardInterrupt
        rename(*paths)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        files.replace_folder(new, target)
    monkeypatch.setattr(os, "rename", rename)
    files.remove_leftovers(target)
    assert (target / "f").read_text() == ("old" if killed_at < 3 else "new")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_left_by_other_processes(tmp_path: Path) -> None:
    pid, parent = gone(), os.getppid()
    names = [f"partial-{pid}@{HERE}", f"partial-{parent}@{HERE}", f"partial-{pid}@elsewhere", "partial-k2j3", "x"]
    for name in names:
        folder(tmp_path / f".run.{name}", "half")
    (tmp_path / f".other.partial-{pid}@{HERE}").write_text("not ours to delete")
    files.remove_leftovers(tmp_path / "run")
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {f".run.{name}" for name in names[1:]} | {f".other.partial-{pid}@{HERE}"}
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))  # more than a day ago
    files.remove_leftovers(tmp_path / "run")
    kept = {p.name for p in tmp_path.iterdir()}
    assert kept == {f".run.partial-{parent}@{HERE}", ".run.x", f".other.partial-{pid}@{HERE}"}


def in_another_process(path: Path, under_the_lock: str) -> subprocess.CompletedProcess[str]:
    script = "import os, sys; from pathlib import Path; from nest_ssl.base.files import lock\n"
    script += f"with lock(Path(sys.argv[1]), 'x'): {under_the_lock}"
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def test_two_do_not_write_to_one_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    holder = rf"training, pid {os.getpid()}@{HERE}, since 2\d+-"
    with files.lock(path, "training"):
        with pytest.raises(UserError, match=holder), files.lock(path, "training"):
            pass
        done = in_another_process(path, "pass")
        assert done.returncode != 0 and re.search(holder, done.stderr)
    assert list(path.parent.iterdir()) == []
    assert in_another_process(path, "pass").returncode == 0


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert in_another_process(path, "os._exit(9)").returncode == 9
    assert path.exists(), "killed: it could not remove it"
    with files.lock(path, "training"):
        assert "training" in path.read_text()


def test_hash_and_kind(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert files.is_regular(tmp_path / "f") and files.is_regular(tmp_path / "link")
    for path in ("pipe", "zero", "none", ".", "a\0b", "a\ud800"):
        assert not files.is_regular(os.path.join(tmp_path, path))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder that takes no file, of root's either")
def test_where_no_file_can_be_no_other_process_is_blamed() -> None:
    with pytest.raises(FileNotFoundError), files.lock(Path("/proc/.nest.lock"), "recording"):
        pass
