"""What docker/locks/ and docker/.env hold, as Python reads it. Imports nothing but Python's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "docker" / "locks"
CPU_WHEELS = "torch-cpu.sha256"  # CPU wheels of torch are on no default index: this lists those that may be installed


class Pin(NamedTuple):
    name: str
    version: str
    hashes: frozenset[str]


def default_nemo() -> str:
    """The release of NeMo that is meant where none is named."""
    return re.findall(r"^DEFAULT_NEMO=(\S+)$", (ROOT / "docker" / ".env").read_text(encoding="utf-8"), re.MULTILINE)[0]


def read_lock(path: Path) -> list[Pin]:
    """Every requirement of a lock; a package may be there in several versions, for different Pythons.

    Raises:
        ValueError: a line that is neither a pin with hashes nor a comment.
    """
    text = re.sub(r"^ *#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [_read_pin(line, path.name) for line in text.splitlines() if line.strip()]


def _read_pin(line: str, file: str) -> Pin:
    match = re.fullmatch(r"([a-z0-9-]+)==([^\s;]+)( ; [^-]+?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
    if not match:
        raise ValueError(f"{file}: not a pin with SHA-256 hashes: {' '.join(line.split())[:80]}")
    return Pin(match[1], match[2], frozenset(re.findall(r"sha256:([0-9a-f]{64})", match[4])))


def locked_versions(*locks: Path) -> dict[str, set[str]]:
    """Package name to the versions that the locks allow; from the .txt files too, which have no hashes."""
    versions: dict[str, set[str]] = {}
    for lock in locks:
        text = lock.read_text(encoding="utf-8")
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE):
            versions.setdefault(canonical(name), set()).add(version)
    return versions


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def cpu_wheels() -> dict[str, str]:
    """File name of each CPU wheel of torch to its SHA-256."""
    lines = (LOCKS / CPU_WHEELS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}
