"""What `nest-ssl explain` and `nest-ssl bisect` run the two trainers with."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nest_ssl.base.errors import InterruptedRun
from nest_ssl.cli.explain import JobRunner, sigterm_interrupts
from nest_ssl.run.evidence import Job


def test_what_needs_the_other_sides_files_waits_and_is_not_begun_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, never = tmp_path / "made", tmp_path / "never"
    monkeypatch.setattr("nest_ssl.cli.explain.has_room", lambda *_: True)
    slow = f"import time; time.sleep(0.5); open({str(made)!r}, 'w')"
    jobs = [
        Job("slow", "reference", "", ["-c", slow], 1.0),
        Job("behind", "candidate", "", ["-c", f"assert open({str(made)!r}); print('read')"], 1.0, (made,)),
        Job("without", "candidate", "without", ["-c", ""], 1.0, (never,)),
    ]
    index: Any = SimpleNamespace(threads=SimpleNamespace(torch=1))
    JobRunner(jobs, {side: [sys.executable] for side in ("reference", "candidate")}, tmp_path, index).run()
    assert (tmp_path / "behind.log").read_text().strip() == "read" and not (tmp_path / "without.log").exists()
    said = capsys.readouterr().out
    assert f"explain: candidate: without: not begun, for there is no {never}" in said and "exit code" not in said


def test_what_does_not_end_when_asked_is_killed_all_at_one_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: whoever stopped this waits no longer than one of them has."""
    monkeypatch.setattr("nest_ssl.cli.explain.has_room", lambda *_: True)
    monkeypatch.setattr("nest_ssl.cli.explain.GRACE", 2.0)
    deaf = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    deaf += "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    marks = {side: tmp_path / side for side in ("reference", "candidate")}
    jobs = [Job(side, side, "", ["-c", deaf, str(mark)], 60.0) for side, mark in marks.items()]
    asked: list[float] = []

    def stop() -> None:
        while not all(mark.exists() for mark in marks.values()):
            time.sleep(0.02)
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    index: Any = SimpleNamespace(threads=SimpleNamespace(torch=1))
    threading.Thread(target=stop).start()
    with pytest.raises(InterruptedRun), sigterm_interrupts():
        JobRunner(jobs, {side: [sys.executable] for side in marks}, tmp_path, index).run()
    assert 1.9 < time.monotonic() - asked[0] < 3.5
