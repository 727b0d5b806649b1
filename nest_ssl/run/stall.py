"""A step that does not end: after `trainer.stall_timeout` seconds each process says where it is, and the run ends.

In `ddp` all ranks wait for the one that is stuck, so each has to say where it is: whoever notices first leaves a file
in the folder that all share, and the others answer with one, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from nest_ssl.base.files import write_atomically

ANSWER_S = 5.0  # that a rank has to say where it is, once another has noticed a stall
FRAMES = 12  # innermost ones of a stack that are shown


def stall_file(folder: Path, rank: int) -> Path:
    return folder / f"stall_{rank}.txt"


class Stalls(Callback):
    """Watches the time since the last batch began or ended, in a thread of its own.

    A step that is stuck in native code which keeps Python's lock cannot be seen from inside: the process that started
    the ranks then says that this one gave no answer.

    Args:
        seconds: how long a step may take; None: any time, and only the end of the process that started this is watched.
        rank: of this process.
        folder: that all ranks share; None: this process trains alone.
        ended: called in the watching thread when this process has said where it is; it does not come back.
    """

    def __init__(self, seconds: float | None, rank: int, folder: Path | None, ended: Callable[[str], None]) -> None:
        self._seconds, self._rank, self._folder, self._ended = seconds, rank, folder, ended
        self._main, self._parent = threading.get_ident(), os.getppid()
        self._began: float | None = None  # monotonic; None: nothing that can stall is going on
        self._stage = ""
        self._module: torch.nn.Module | None = None  # that was called last in this stage
        self._names: dict[int, str] = {}
        self._over = threading.Event()
        self._hook: RemovableHandle | None = None

    # --- Lightning's hooks: where training is ---

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names = {id(module): name or "(root)" for name, module in pl_module.named_modules()}
        if self._seconds is not None:
            self._hook = torch.nn.modules.module.register_module_forward_pre_hook(self._enter)
        self._reach(f"fetching batch {trainer.fit_loop.total_batch_idx + 1}")
        threading.Thread(target=self._watch, name="stalls", daemon=True).start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._reach(f"step {trainer.fit_loop.epoch_loop.total_batch_idx}, forward")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._stage = self._stage.replace("forward", "backward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stage = self._stage.replace("backward", "optimizer")

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._reach(f"behind step {trainer.fit_loop.epoch_loop.total_batch_idx}")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self._reach("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reach("behind the validation")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._over.set()
        if self._hook is not None:
            self._hook.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._over.set()

    def _reach(self, stage: str) -> None:
        self._stage, self._module, self._began = stage, None, time.monotonic()

    def _enter(self, module: torch.nn.Module, arguments: Any) -> None:
        self._module = module

    # --- the watching thread ---

    def _watch(self) -> None:
        pause = 0.5 if self._seconds is None else min(0.5, self._seconds / 10)
        while not self._over.wait(pause):
            folder = self._folder
            if folder and os.getppid() != self._parent:
                os._exit(1)  # it was killed: what trains on without it would never be put in its place
            began = self._began
            late = self._seconds is not None and began is not None and time.monotonic() - began > self._seconds
            if late or (folder and any(folder.glob("stall_*.txt"))):
                text = self.standing()
                with contextlib.suppress(OSError):
                    if folder:
                        write_atomically(stall_file(folder, self._rank), text)
                self._ended(text)

    def standing(self) -> str:
        """Where this process is: a line, and the innermost frames of its main thread."""
        module = self._names.get(id(self._module), type(self._module).__name__) if self._module is not None else "none"
        waited = time.monotonic() - (self._began or time.monotonic())
        head = f"rank {self._rank}: {self._stage or 'not training'} for {waited:.0f} s, last module {module}\n"
        frame = sys._current_frames().get(self._main)
        return head + "".join(traceback.format_stack(frame)[-FRAMES:] if frame else [])
