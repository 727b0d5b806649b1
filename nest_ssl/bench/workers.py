"""Workers as seen from outside: started, asked, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from nest_ssl.base.home import ROOT
from nest_ssl.bench.trainings import NO_TIME, NO_WORKERS, Bench, python_path

# Words that are no settings: without NeMo's type checks; with the C library's allocator as it comes.
SWITCHES = NO_TYPE_CHECKS, GIVEN_BACK = "--no-type-checks", "--memory-given-back"
# As `boundaries`, but no weights and nothing of the optimizer's. It is measured alone, and no level of the recorder:
# where one side had no file of the optimizer, the comparer would read that it made no update.
WITHOUT_STATE = "boundaries without state"
LEVELS = {"boundaries": 2, WITHOUT_STATE: 2, "digest": 3, "modules": 2}  # of which steps are recorded, and how many


class WorkerEnded(Exception):
    """A worker has ended, or had no time left, before it answered; the last line of its log."""


class Worker:
    """A trainer that waits for orders, see `worker.py`. As a context manager it is ended with the block.

    Args:
        side: `nemo` or `nest`.
        overrides: of its configuration.
        record: a folder for a recording; None where no order will ask for one.

    Attributes:
        bench: whose time is meant.
    """

    def __init__(self, bench: Bench, side: str, *overrides: str, record: Path | None = None) -> None:
        self.name, self.bench = side, bench
        name = "-".join(["worker", side, *overrides, *(["recorder"] if record else [])])
        self._log = bench.folder / f"{name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        script = str(ROOT / bench.sides[side].script)
        recorded = ["--record", str(record)] if record else []
        settings = [f"trainer.accelerator={bench.accelerator}", f"size={bench.size}", "run=full", *NO_WORKERS]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [bench.sides[side].python, "-m", "nest_ssl.bench.worker", script, *recorded, *settings, *overrides],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": python_path()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, **order: Any) -> Mapping[str, Any]:
        """Give an order and wait for its answer.

        Raises:
            WorkerEnded: there will be none.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        alarm = threading.Timer(min(self.bench.seconds_left, 10**6), self._process.kill)
        alarm.start()
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line:
            raise WorkerEnded(f"{self.name}: {self._end() if self.bench.seconds_left else NO_TIME}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def _end(self) -> str:
        """The signal that ended it, for then its log speaks of something else; or the log's last line."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "killed from outside, as where the machine's memory is gone"
        if code is not None and code < 0:
            return f"ended by {signal.Signals(-code).name}"
        lines = self._log.read_text(errors="replace").strip().splitlines() or ["no output"]
        return lines[-1][:300]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()
