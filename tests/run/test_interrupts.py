"""Ctrl-C ends training wherever it comes, also where the exception that Python makes of it is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train_nest import NEST

from nest_ssl.base.errors import InterruptedRun
from nest_ssl.run.experiment import run
from nest_ssl.run.interrupts import Interrupts
from nest_ssl.train.module import NestModule

LAST = 3


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """A shell's background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class Finalized:
    """What Python raises in here it prints and forgets."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        _ = list(range(1000))  # a handler runs between two instructions


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("step", [1, LAST])
def test_an_interrupt_that_is_lost_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original, begun = NestModule.training_step, []

    def interrupted(self: NestModule, *args: Any) -> Any:
        begun.append(len(begun) + 1)
        if len(begun) == step:
            Finalized()
        return original(self, *args)

    monkeypatch.setattr(NestModule, "training_step", interrupted)
    settings = ["size=tiny", f"batches={LAST}", "save_steps=0", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(InterruptedRun) as stopped:
        run(NEST, settings)
    assert stopped.value.signal_number == signal.SIGINT and begun[-1] == step
    assert not (tmp_path / "out").exists()


def test_one_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts().noted():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN
