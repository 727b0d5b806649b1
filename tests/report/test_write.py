"""The two files: whole, together, and never a mixture of two runs."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.report import write_reports
from tests.report.builder import comparison, diverged


def belongs(folder: Path) -> bool:
    """Whether `report.md` names the `report.json` beside it, as a reader checks it."""
    found = re.search(r"its SHA-256 begins with ([0-9a-f]{16})", (folder / "report.md").read_text())
    assert found is not None
    return hashlib.sha256((folder / "report.json").read_bytes()).hexdigest().startswith(found[1])


def test_files_are_whole_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    mask = os.umask(0o022)
    try:
        assert write_reports(diverged(), out) == out / "report.md"
    finally:
        os.umask(mask)
    assert sorted(entry.name for entry in out.iterdir()) == ["report.json", "report.md"]
    assert [entry.stat().st_mode & 0o777 for entry in out.iterdir()] == [0o644, 0o644]
    assert (out / "report.md").read_bytes().count(b"\r") == 0


def test_halves_of_two_runs_do_not_pass_for_one(tmp_path: Path) -> None:
    for name, made in (("a", comparison()), ("b", diverged())):
        write_reports(made, tmp_path / name)
        assert belongs(tmp_path / name)
    os.replace(tmp_path / "a/report.json", tmp_path / "b/report.json")
    assert not belongs(tmp_path / "b")


@pytest.mark.parametrize("failing", [1, 2])
def test_a_write_that_fails_keeps_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Whichever of the two files the disk is full at."""
    write_reports(comparison(), tmp_path)
    earlier = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = Path.write_bytes
    calls: list[Path] = []

    def full(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="no space left"):
        write_reports(diverged(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier


def test_a_run_killed_between_the_two_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data comes first: then the old text does not name it."""
    write_reports(comparison(), tmp_path)
    replaced = os.replace
    calls: list[object] = []

    def killed(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replaced(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_reports(diverged(), tmp_path)
    assert Path(str(calls[0])).name == "report.json"
    assert not belongs(tmp_path)


@pytest.mark.parametrize("out", ["a-file", "a-file/below"])
def test_an_unwritable_folder(tmp_path: Path, out: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(UserError):
        write_reports(comparison(), tmp_path / out)


def test_no_long_hash_in_the_text(tmp_path: Path) -> None:
    write_reports(diverged(), tmp_path)
    assert re.findall("[0-9a-f]{17,}", (tmp_path / "report.md").read_text()) == []
