"""With all evidence, a fault of each part of training is caught and placed, and a correct rewrite is spared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nest_ssl.selftest.cases import read_catalogue


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_part_of_the_catalogue(tmp_path: Path) -> None:
    """In a process of its own: a case is a fork of one that has trained nothing."""
    cases = [case for case in read_catalogue() if case.quick]
    faults = [case for case in cases if case.is_fault]
    assert len(faults) >= 10 and len(cases) - len(faults) >= 3
    command = [sys.executable, "-m", "nest_ssl.cli.main", "selftest", "--quick", "--no-limits", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [f"selftest: {len(cases)} of {len(cases)} are right"], (
        done.stdout + done.stderr
    )
    assert done.returncode == 0
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)  # nothing is left to try
    assert again.stdout.splitlines() == done.stdout.splitlines()[-1:]
