"""Loader workers that leave SIGTERM and SIGINT to the trainer.

Ctrl-C, `timeout`, Slurm and `pkill` send a signal to the workers as well. They would die of it at once, and the trainer
with them: torch raises a RuntimeError wherever the trainer is, so it could neither finish its batch nor save behind it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nest_ssl.data import torch_internals


@contextmanager
def shielded_workers() -> Iterator[None]:
    """While this is open, workers of any loader that begin outlive such a signal. What seeds them is untouched.

    They still end when the trainer ends them, and when it is gone (torch looks every 5 seconds).
    """
    original = torch_internals.swap_worker_loop(run_shielded)
    try:
        yield
    finally:
        torch_internals.swap_worker_loop(original)


def run_shielded(*arguments: Any) -> None:
    """A worker process: torch's own, behind the shield. (A module's function, so that it can be spawned, too.)"""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # out of a terminal's reach, with all that it starts: a decoder cut short is no bad audio
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    if trainer and hasattr(signal, "sigwaitinfo"):  # macOS has none: there SIGTERM by a worker's own number ends it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(trainer.pid,), daemon=True).start()
    torch_internals.WORKER_LOOP(*arguments)


def _end_with(trainer: int) -> None:
    """Wait for the trainer's SIGTERM, with which torch and multiprocessing end a worker that does not end by itself."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)
