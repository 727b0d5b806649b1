"""Results of earlier runs: what cannot be shown is refused before anything is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.bench import cpu_page

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
