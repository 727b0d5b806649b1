"""Training that was stopped and resumed ends with the bits of training that was not, whatever it was doing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.errors import InterruptedRun
from nest_ssl.train.module import NestModule
from tests.train.resuming import assert_same, train

EVERY = "exp_manager.checkpoint_callback_params.every_n_train_steps"
NO_VALIDATION = ("trainer.limit_val_batches=0", "exp_manager.checkpoint_callback_params.monitor=null")


@contextmanager
def signal_at(monkeypatch: pytest.MonkeyPatch, step: str, count: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal in the `count`th call of a step of the model."""
    original, seen = getattr(NestModule, step), 0

    def signalled(self: NestModule, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(NestModule, step, signalled)
        yield


SIGNAL_IN_BATCH, SIGNAL_IN_VALIDATION = "training_step", "validation_step"
CASES: dict[str, tuple[list[str], list[tuple[str, int]]]] = {
    # 5 batches an epoch; the second signal comes so many calls after the first.
    "at an epoch's end, within one, within a validation": (
        [], [(SIGNAL_IN_BATCH, 5), (SIGNAL_IN_BATCH, 2), (SIGNAL_IN_VALIDATION, 1)],
    ),
    "workers, several validations an epoch": (
        ["model.train_ds.num_workers=2", "trainer.val_check_interval=0.4", "trainer.max_epochs=2"], [(SIGNAL_IN_BATCH, 8)],
    ),
    "half accumulated, in bfloat16": (
        ["trainer.accumulate_grad_batches=3", "trainer.precision=bf16-mixed", "trainer.val_check_interval=2",
         "trainer.gradient_clip_val=0.5"],
        [(SIGNAL_IN_BATCH, 2), (SIGNAL_IN_BATCH, 5), (SIGNAL_IN_VALIDATION, 1)],
    ),
    "steps counted, no validation, in order, an incomplete batch": (
        ["batches=15", *NO_VALIDATION, f"{EVERY}=4", "model.train_ds.shuffle=false", "model.train_ds.drop_last=false",
         "trainer.limit_train_batches=6", "model.train_ds.batch_size=2"],
        [(SIGNAL_IN_BATCH, 6), (SIGNAL_IN_BATCH, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    settings, stops = CASES[case]
    train(tmp_path / "whole", *settings)
    for step, count in stops:
        with signal_at(monkeypatch, step, count), pytest.raises(InterruptedRun):
            train(tmp_path / "parts", *settings)
    train(tmp_path / "parts", *settings)
    assert_same(tmp_path / "whole", tmp_path / "parts")
