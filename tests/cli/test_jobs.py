"""What `nest-ssl explain` and `nest-ssl bisect` run the two trainers with."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nest_ssl.cli.explain import JobRunner
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
