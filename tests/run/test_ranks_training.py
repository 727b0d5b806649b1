"""The port in two processes: a run that a signal stops, and that is resumed, ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from train_nest import NEST

from nest_ssl.run.experiment import run
from tests.train.checkpoint.resuming import COMMON, assert_same, last

# Two epochs of six batches a rank, everything random on, shuffled: it is stopped within one.
TWO = (*COMMON, "trainer.devices=2", "trainer.max_epochs=2", "model.train_ds.batch_size=1", "exp_manager.name=x",
       "trainer.limit_val_batches=0",
       "exp_manager.checkpoint_callback_params.monitor=null",
       "exp_manager.checkpoint_callback_params.every_n_train_steps=3")  # fmt: skip


def train(folder: Path) -> int:
    return run(NEST, [*TWO, f"output_dir={folder / 'recording'}", f"exp_manager.exp_dir={folder}"])


@pytest.mark.slow
def test_stopped_by_a_signal_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> None:
    monkeypatch.setattr(sys, "executable", python)  # ranks start in a tenth of a second
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole) == 0

    def stop() -> None:
        while not list(parts.glob("x/checkpoints/*.ckpt")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    assert train(parts) == 128 + signal.SIGTERM
    stopper.join()
    stopped = last(parts)
    assert 3 <= stopped["global_step"] < 12
    one, other = stopped["nest_ssl"]["ranks"]
    drawn = [rank["generators"]["python"] for rank in (one, other)]
    assert drawn[0] != drawn[1], "what the ranks draw depends on their batches"
    assert train(parts) == 0
    assert_same(whole, parts)
