"""A command's own memory, seen from outside."""

from __future__ import annotations

import sys

from nest_ssl.bench import cpu


def test_the_memory_of_a_commands_own() -> None:
    said, most = cpu.own_memory([sys.executable, "-c", "import time; x = b'x' * 10**8; time.sleep(0.3); print(7)"])
    assert said == "7\n" and 1e8 < (most or 0) < 1.5e8
