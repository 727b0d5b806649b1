"""Loader workers outlive a signal that is not the trainer's, and end with the trainer (in training: `test_killed`)."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, Dataset

from nest_ssl.data.workers import shielded_workers

SEEDING = partial(pl_worker_init_function, rank=1)


class Draws(Dataset[list[float]]):
    """From each generator a number."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]


def draws(seeding: Any) -> list[Any]:
    torch.manual_seed(3)
    return list(DataLoader(Draws(), batch_size=None, num_workers=2, worker_init_fn=seeding))


@pytest.mark.parametrize("seeding", [None, SEEDING])
def test_what_a_worker_draws_stays(seeding: Any) -> None:
    bare = draws(seeding)
    with shielded_workers():
        assert draws(seeding) == bare
    assert draws(seeding) == bare != draws(None if seeding else SEEDING), "else the seeds of workers play no part here"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_is_not_the_trainers_is_outlived(name: str) -> None:
    """Sent to the worker by its number, as `pkill` or a cgroup does; the trainer's own SIGTERM still ends it."""
    with shielded_workers():
        batches = iter(DataLoader(Draws(), batch_size=None, num_workers=1, prefetch_factor=1))
    next(batches)
    (worker,) = batches._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgrp()
    subprocess.run(["kill", f"-{name.removeprefix('SIG')}", str(worker.pid)], check=True)
    assert len(list(batches)) == 5
    del batches
    worker.join(10)
    assert worker.exitcode == 0


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("hangs", [False, True], ids=["the trainer is killed", "the trainer ends, the worker hangs"])
def test_no_worker_stays_behind(python: str, hangs: bool) -> None:
    command = [python, str(Path(__file__).with_name("abandoned.py")), "ends" if hangs else "waits"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        trainer, worker = map(int, process.stdout.readline().split())
        assert not gone(worker)
        if not hangs:
            time.sleep(1)
            os.kill(trainer, signal.SIGKILL)
        assert process.wait(30) == (0 if hangs else -signal.SIGKILL)
    deadline = time.monotonic() + 15
    while not gone(worker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert gone(worker)
