"""What a person is told; noise goes to the log, and everything is as before afterwards."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.data.lines import Entry, Place
from nest_ssl.data.skipping import LoadFailure, SkippedAudio
from nest_ssl.run.console import Progress, quiet, summary

PROGRAM = """
import logging, os, sys
from pathlib import Path
from nest_ssl.run.console import quiet
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler(sys.stderr))
with quiet(Path(sys.argv[1])) as console:
    late = logging.getLogger("late")
    late.addHandler(logging.StreamHandler())
    print("printed")
    print("warned", file=sys.stderr)
    early.error("by an early logger")
    os.system("echo by a child process")
    print("for the person \u65e5", file=console)
early.error("after")
print("back")
"""


def test_prints_loggers_and_children_go_to_the_file(tmp_path: Path, python: str) -> None:
    """And come back to where they were; a console that cannot show a character shows its escape."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [python, tmp_path / "program.py", tmp_path / "run.log"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    log = (tmp_path / "run.log").read_text()
    assert all(word in log for word in ("printed", "warned", "by an early logger", "by a child process"))
    assert done.stderr == "for the person \\u65e5\nafter\n" and done.stdout == "back\n", done


def test_an_error_passes_through_and_stdout_is_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), quiet(tmp_path / "run.log"):
        raise ZeroDivisionError
    print("back")
    assert capsys.readouterr().out == "back\n"


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError), quiet(tmp_path / "file" / "run.log"):
        pass


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("end", ["on_train_end", "on_exception", "teardown"])
def test_the_bar_is_closed_however_training_ends(end: str) -> None:
    """When time is up, Lightning calls `teardown` alone."""
    progress, trainer = Progress(Terminal(), "nest"), finished(train_loss=1.5)
    trainer.num_training_batches, trainer.current_epoch, trainer.fit_loop = 5, 0, SimpleNamespace(restarting=False)
    progress.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    progress.on_train_batch_end(trainer, None, torch.tensor(1.5), None, 0)  # type: ignore[arg-type]
    assert "1/5" in progress._bar.format_meter(1, 5, 1.0), progress._bar
    getattr(progress, end)(trainer, None, *{"teardown": ["fit"], "on_exception": [ValueError()]}.get(end, []))
    assert progress._bar is None


def test_without_a_terminal_there_are_lines_and_no_bar() -> None:
    console = io.StringIO()
    progress, trainer = Progress(console, "nest"), finished(val_loss=2.5)
    trainer.num_training_batches, trainer.current_epoch = 500, 0
    trainer.fit_loop = SimpleNamespace(restarting=False, total_batch_idx=0)
    progress.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    for batch in range(250):
        trainer.fit_loop.total_batch_idx = batch
        progress.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.5)}, None, batch)  # type: ignore[arg-type]
    progress.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert console.getvalue() == "nest step 7: loss 1.500000, lr 1.250e-03\n" * 2


class _Logger:
    log_dir, save_dir = None, "logs"


def finished(**metrics: float) -> Any:
    """What is read of a Trainer."""
    return SimpleNamespace(
        global_step=7, callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        accumulate_grad_batches=1, lightning_module=None,
        loggers=[_Logger()], sanity_checking=False, is_global_zero=True,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.00125}])],
    )  # fmt: skip


def test_the_last_line_tells_what_there_is_to_tell() -> None:
    skipped = SkippedAudio()
    assert summary(finished(), None, Path("run.log")) == "trained 7 steps, log: run.log, logs"
    trainer = finished(val_loss=2.5, dev_val_loss=2.5, train_loss=1.5, epoch=3.0)
    losses = "trained 7 steps, train_loss 1.500000, val_loss 2.500000, dev_val_loss 2.500000"
    assert summary(trainer, skipped, Path("run.log")) == f"{losses}, skipped no audio file, log: run.log, logs"
    parts = finished(val_loss=2.5, train_contrastive=1.5)  # of a list, without their sum
    parts.accumulate_grad_batches = 2
    told = summary(parts, None, Path("run.log"), {"loss": torch.tensor(0.75)})
    assert told.startswith("trained 7 steps, train_loss 1.500000, val_loss 2.500000")
    assert "train_loss" not in summary(parts, None, Path("run.log"))
    for line in (1, 2, 2):
        entry = Entry("/data/a.wav", None, None, Place("/data/m.json", line))
        skipped.add([LoadFailure(UserError("bad", f"/data/a.wav ({entry.place})", "Mend it."), entry)])
    assert "skipped 2 audio files (3 times)" in summary(trainer, skipped, Path("run.log"))
    trainer.lightning_module = SimpleNamespace(graphed=SimpleNamespace(replayed=5, shapes=2))
    assert ", replayed 5 steps of 2 shapes, log:" in summary(trainer, None, Path("run.log"))


def test_a_line_a_validation() -> None:
    console = io.StringIO()
    progress, trainer = Progress(console, "nest"), finished(val_loss=2.5, train_loss=1.5)
    progress.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert console.getvalue() == "nest step 7: val_loss 2.500000, lr 1.250e-03\n"
    trainer.sanity_checking = True
    progress.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert console.getvalue().count("\n") == 1
