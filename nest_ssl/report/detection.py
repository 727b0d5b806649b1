"""What this comparer was measured to catch (`nest-ssl selftest`), for every report: the sum, and where it was measured.

`detection.json` beside this file is written by the self-test. It holds a hash over the sources of the comparer: when
they have changed since, the sum is of another comparer, and the report says so.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from nest_ssl.base.files import write_atomically

PACKAGE = Path(__file__).resolve().parents[1]
ROOMS = ("base", "recording", "record", "compare", "replay")  # whose sources decide what is found
MEASURED = Path(__file__).with_name("detection.json")


@dataclass(frozen=True, slots=True)
class Detection:
    """The sum of a self-test.

    Args:
        commit, day: at which it was measured.
        comparer: hash of the comparer's sources.
        faults, placed: planted, and of those caught and placed right.
        rewrites, spared: correct rewrites, and of those not called a bug.
        smallest, smallest_float64: relative error seen, in float32 and in float64; None where none was.
    """

    commit: str
    day: str
    comparer: str
    faults: int
    placed: int
    rewrites: int
    spared: int
    smallest: float | None
    smallest_float64: float | None

    @property
    def is_of_this_comparer(self) -> bool:
        return self.comparer == comparer_hash()


@cache
def comparer_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over the sources that decide what a comparison finds, and over their names."""
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            digest.update(f"{path.relative_to(package).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def read_detection(path: Path = MEASURED) -> Detection | None:
    """The last measured sum; None where there is none that can be read."""
    try:
        return Detection(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_detection(detection: Detection, path: Path = MEASURED) -> None:
    """Write it, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(path, json.dumps(asdict(detection), indent=1) + "\n")
