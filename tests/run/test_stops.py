"""A batch at which NeMo stops ends a run in one line: each kind of exception that it raises there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.run.stops import FILES, STOPS, Stop
from nest_ssl.train.module import NestModule
from tests.test_planted_faults import record


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.function)
def test_a_run_ends_in_one_line(stop: Stop, tmp_path: Path) -> None:
    def stop_at_a_batch(model: NestModule) -> None:
        names: dict[str, Any] = {"error": stop.kind(stop.words)}
        exec(compile(f"def {stop.function}(*_):\n    raise error", FILES[0], "exec"), names)  # as if in NeMo's file
        model.training_step = names[stop.function]  # type: ignore[method-assign]

    with pytest.raises(UserError) as ended:
        record(tmp_path / "nest", stop_at_a_batch, "model.encoder.n_layers=1")
    assert (ended.value.what, ended.value.fix) == (stop.what, stop.fix)
