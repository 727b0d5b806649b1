"""A bar where somebody sees it, and not a byte where nobody does."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from nest_ssl.base import progress
from nest_ssl.base.files import sha256_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_what_is_done_and_how_much_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.bar("checking files", 6_000_000):
        sha256_of(tmp_path / "file")
        with progress.bar("within it", 5):
            pass
        progress.advance(1_500_000)
    shown = terminal.getvalue()
    assert "checking files" in shown and "4.5/6.0 MB" in shown and "within it" not in shown
    assert progress._moves is None


def test_nobody_who_reads_a_file_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with progress.bar("checking files", 6):
        progress.advance(6)
    assert not file.getvalue()


def test_what_goes_wrong_within_leaves_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ValueError, match="wrong"), progress.bar("checking files", 6):
        raise ValueError("wrong")
    assert progress._moves is None
