"""What stands in the way of measuring: earlier results that cannot be shown, another bench, a full disk."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import lock
from nest_ssl.bench import cpu_page
from nest_ssl.cli import bench as cli
from nest_ssl.cli.bench import main

OURS = {"schema": "nest-ssl-bench/1", "steps": [], "recorder": [], "start": []}
DAMAGED = [
    {"schema": OURS["schema"]},
    {**OURS, "steps": 5},
    {**OURS, "steps": [{"name": "large", "batch": [8, 16.0], "step_ms": 5}]},
    {**OURS, "comparer": [{"name": "equal", "gbs": 0}]},
]


@pytest.mark.parametrize("content", ["no JSON", *map(json.dumps, [{"schema": "other"}, [], *DAMAGED])])
def test_what_others_wrote_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "benchmarks.json").write_text(content)
    with pytest.raises(UserError, match="not results of this command"):
        cpu_page.load(tmp_path / "benchmarks.json")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space")


def test_a_full_disk_names_the_folder_and_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "measure", full)
    with pytest.raises(UserError, match=r"no space left on the disk: .*nest-ssl-bench-.*set TMPDIR"):
        main(["--only", "comparer", "--out", str(tmp_path)])
    assert not (tmp_path / ".benchmarks.lock").exists()


def test_a_second_bench_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would measure each other."""
    monkeypatch.setattr(cli, "measure", None)
    with (
        lock(tmp_path / ".benchmarks.lock", "bench"),
        pytest.raises(UserError, match=r"writes here already \(bench, pid"),
    ):
        main(["--only", "comparer", "--out", str(tmp_path)])
    assert not (tmp_path / "benchmarks.json").exists()
