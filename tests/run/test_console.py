"""What a person is told; noise goes to the log, and everything is as before afterwards."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.data.manifest import Entry, Place
from nest_ssl.data.skipping import LoadFailure, SkippedAudio
from nest_ssl.run.console import Progress, quiet, summary


def test_prints_and_loggers_go_to_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    early = logging.getLogger("noisy.early")
    handler = logging.StreamHandler(sys.stderr)
    early.addHandler(handler)
    with quiet(tmp_path / "run.log") as console:
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
    with pytest.raises(ZeroDivisionError), quiet(tmp_path / "run.log"):
        raise ZeroDivisionError
    print("back")
    assert capsys.readouterr().out == "back\n"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError), quiet(tmp_path / "file" / "run.log"):
        pass


class _Logger:
    log_dir, save_dir = None, "logs"


def finished(**metrics: float) -> Any:
    """What is read of a Trainer."""
    return SimpleNamespace(
        global_step=7, callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        loggers=[_Logger()], sanity_checking=False, is_global_zero=True,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.00125}])],
    )  # fmt: skip


def test_the_last_line_tells_what_there_is_to_tell() -> None:
    skipped = SkippedAudio()
    assert summary(finished(), None, Path("run.log")) == "trained 7 steps, log: run.log, logs"
    trainer = finished(val_loss=2.5, dev_val_loss=2.5, train_loss=1.5, epoch=3.0)
    losses = "trained 7 steps, train_loss 1.500000, val_loss 2.500000, dev_val_loss 2.500000"
    assert summary(trainer, skipped, Path("run.log")) == f"{losses}, skipped no audio file, log: run.log, logs"
    for line in (1, 2, 2):
        entry = Entry("/data/a.wav", None, None, Place("/data/m.json", line))
        skipped.add([LoadFailure(UserError("bad", f"/data/a.wav ({entry.place})", "Mend it."), entry)])
    assert "skipped 2 audio files (3 times)" in summary(trainer, skipped, Path("run.log"))


def test_a_line_a_validation() -> None:
    console = io.StringIO()
    progress, trainer = Progress(console, "nest"), finished(val_loss=2.5, train_loss=1.5)
    progress.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert console.getvalue() == "nest step 7: val_loss 2.500000, lr 1.250e-03\n"
    trainer.sanity_checking = True
    progress.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert console.getvalue().count("\n") == 1
