"""What `test_killed` stops: `killed.py SECONDS shielded|bare OVERRIDES` says its process id, then its steps."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from nest_ssl.base.errors import run_command
from nest_ssl.data.dataset import AudioNoiseDataset
from nest_ssl.run import experiment
from nest_ssl.train.module import NestModule

SCRIPT = Path(__file__).parents[3] / "scripts" / "train_nest.py"


def main(seconds: float, shielded: bool, overrides: list[str]) -> None:
    """Train as the leader of a process group; each utterance takes `seconds`, and each step is a line when it begins.

    The first line is the process id. All else that is printed goes to stderr.
    """
    os.setsid()
    steps = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    step, item = NestModule.training_step, AudioNoiseDataset.__getitem__

    def reporting(self: NestModule, *args: Any, **kwargs: Any) -> Any:
        print(self.trainer.fit_loop.total_batch_idx, file=steps)
        return step(self, *args, **kwargs)

    def slow(self: AudioNoiseDataset, index: int) -> Any:
        time.sleep(seconds)
        return item(self, index)

    NestModule.training_step, AudioNoiseDataset.__getitem__ = reporting, slow  # type: ignore[method-assign]
    _MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.5,)  # seconds until it looks after workers, not five
    if not shielded:
        experiment.shielded_workers = contextlib.nullcontext  # type: ignore[assignment]
    print(os.getpid(), file=steps)
    nest = runpy.run_path(str(SCRIPT))["NEST"]
    run_command(lambda: experiment.run(nest, overrides))


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2] == "shielded", sys.argv[3:])
