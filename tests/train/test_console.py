"""Noise goes to the log, and everything is as before afterwards."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from nest_ssl.errors import UserError
from nest_ssl.train.console import noise_to_file


def test_prints_and_loggers_go_to_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    early = logging.getLogger("noisy.early")
    handler = logging.StreamHandler(sys.stderr)
    early.addHandler(handler)
    with noise_to_file(tmp_path / "run.log") as console:
        late = logging.getLogger("noisy.late")
        late.addHandler(logging.StreamHandler())
        print("printed")
        print("warned", file=sys.stderr)
        early.error("early")
        late.error("late")
        print("for the person", file=console)
    late.error("after")
    early.removeHandler(handler)
    text = (tmp_path / "run.log").read_text()
    assert all(word in text for word in ("printed", "warned", "early", "late"))
    told = capfd.readouterr().err
    assert "for the person" in told and "after" in told and "warned" not in told


def test_an_error_passes_through_and_stdout_is_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), noise_to_file(tmp_path / "run.log"):
        raise ZeroDivisionError
    print("back")
    assert capsys.readouterr().out == "back\n"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError), noise_to_file(tmp_path / "file" / "run.log"):
        pass
