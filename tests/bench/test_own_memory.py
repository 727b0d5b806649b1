"""A command's own memory, seen from outside."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from nest_ssl.base.errors import InterruptedRun
from nest_ssl.bench import cpu


def test_the_memory_of_a_commands_own() -> None:
    said, most = cpu.own_memory([sys.executable, "-c", "import time; x = b'x' * 10**8; time.sleep(0.3); print(7)"])
    assert said == "7\n" and 1e8 < (most or 0) < 1.5e8


def test_the_command_ends_with_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads is deleted then, and it would end with a traceback of its own."""
    started: list[int] = []
    popen = cpu.subprocess.Popen

    def noted(*arguments: object, **named: object) -> object:
        child = popen(*arguments, **named)  # type: ignore[call-overload]
        started.append(child.pid)
        return child

    def interrupted(_: float) -> None:
        raise InterruptedRun(signal.SIGTERM)

    monkeypatch.setattr(cpu.subprocess, "Popen", noted)
    monkeypatch.setattr(cpu.time, "sleep", interrupted)
    with pytest.raises(InterruptedRun):
        cpu.own_memory([sys.executable, "-c", "import signal; signal.pause()"])
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
