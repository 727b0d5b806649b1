"""What `test_workers` kills or lets end: `abandoned.py waits|ends` says its process id and its loader's worker's."""

from __future__ import annotations

import os
import sys
import time

from torch.utils.data import DataLoader, Dataset, _utils

from nest_ssl.data.workers import shielded_workers


class Slow(Dataset[float]):
    """Its only item takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> float:
        time.sleep(self.seconds)
        return 0.0


def main(ends: bool) -> None:
    """Start a worker; wait to be killed, or end while it hangs.

    Torch looks every half second whether the other one is still there, in place of every five.
    """
    _utils.MP_STATUS_CHECK_INTERVAL = _utils.worker.MP_STATUS_CHECK_INTERVAL = 0.5
    with shielded_workers():
        batches = iter(DataLoader(Slow(1000 if ends else 0), num_workers=1))
    print(os.getpid(), batches._workers[0].pid, flush=True)
    time.sleep(1 if ends else 1000)  # until the worker has begun


if __name__ == "__main__":
    main(sys.argv[1] == "ends")
