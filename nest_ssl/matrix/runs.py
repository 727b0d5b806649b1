"""Both sides, one variant after another; what is found is kept, so that a run goes on where it stopped.

Each side is a process that has imported its trainer once. Results are JSON lines, by the variant and by what they
depend on: the port's source, the release of NeMo.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.matrix.step import first_difference
from nest_ssl.matrix.variants import Variant

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("nest_ssl/base", "nest_ssl/recording", "nest_ssl/record", "nest_ssl/config", "nest_ssl/model",
           "nest_ssl/train", "nest_ssl/run/subject.py", "nest_ssl/matrix", "nest_ssl/releases.py", "conf",
           "scripts/train_nemo.py", "scripts/train_nest.py")  # fmt: skip
RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Cell:
    """One variant on both sides.

    Args:
        key: of the variant, the release and the source.
        group, name: the variant's.
        reference, candidate: why NeMo, and why the port, did not train; empty: it did.
        difference: the first place where the bits part, if both did; None: nowhere.
        places: how many were compared.
        seconds: of both sides.
    """

    key: str
    group: str
    name: str
    reference: str
    candidate: str
    difference: str | None
    places: int
    seconds: float

    @property
    def verdict(self) -> str:
        """In two words."""
        if self.reference and self.candidate:
            return "refused"
        if self.reference:
            return "only the port trains"
        if self.candidate:
            return "only NeMo trains"
        return "other bits" if self.difference else "same bits"

    @property
    def is_right(self) -> bool:
        """Both train with the same bits, or neither trains."""
        return self.verdict in ("same bits", "refused")


class Side:
    """A worker, started at its first order. As a context manager it is ended with the block."""

    def __init__(self, python: str, script: str, log: Path) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "nest_ssl.matrix.worker", script],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._log = log

    def ask(self, settings: list[str]) -> dict[str, Any]:
        """What became of it: digests and seconds, or an error.

        Raises:
            UserError: the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(settings) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            last = (self._log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise UserError("a side has ended", last[:300], f"See {self._log}.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def run_matrix(
    variants: Sequence[Variant],
    pythons: dict[str, str],
    release: str,
    folder: Path,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> list[Cell]:
    """A cell for each variant, in their order.

    Args:
        variants: which.
        pythons: of `nemo` and of `nest`.
        release: of NeMo, which the port is to be exact with.
        folder: for results and logs.
        jobs: how many pairs of processes at once.
        say: shows a line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results, keys = folder / RESULTS, keys_of(variants, release)
    known = {cell.key: cell for cell in read_cells(results)}
    waiting: SimpleQueue[tuple[str, Variant]] = SimpleQueue()
    missing = [(key, variant) for key, variant in zip(keys, variants, strict=True) if key not in known]
    for each in missing:
        waiting.put(each)
    lock = threading.Lock()

    def work(number: int) -> None:
        sides = (
            Side(python, str(ROOT / f"scripts/train_{name}.py"), folder / f"{name}-{number}.log")
            for name, python in pythons.items()
        )
        with next(sides) as nemo, next(sides) as nest, ThreadPoolExecutor(2) as both:
            while True:
                try:
                    key, variant = waiting.get_nowait()
                except Empty:
                    return
                settings = [*variant.settings, f"nemo={release}"]
                reference, candidate = both.map(lambda side, s=settings: side.ask(s), (nemo, nest))
                cell = cell_of(key, variant, reference, candidate)
                with lock, results.open("a") as file:
                    known[key] = cell
                    file.write(json.dumps(asdict(cell)) + "\n")
                    say(f"{variant.title}: {cell.verdict}")

    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(work, range(min(jobs, len(missing)))):
            pass
    return [known[key] for key in keys]


def cell_of(key: str, variant: Variant, reference: dict[str, Any], candidate: dict[str, Any]) -> Cell:
    """What two answers come to."""
    digests = [side.get("digests", {}) for side in (reference, candidate)]
    both, seconds = all(digests), sum(side.get("seconds", 0.0) for side in (reference, candidate))
    return Cell(
        key=key,
        group=variant.group,
        name=variant.name,
        reference=str(reference.get("error", "")),
        candidate=str(candidate.get("error", "")),
        difference=first_difference(*digests) if both else None,
        places=len(digests[0]) if both else 0,
        seconds=round(seconds, 2),
    )


def keys_of(variants: Sequence[Variant], release: str) -> list[str]:
    """What a cell is known by: settings, release and source."""
    source = source_hash()
    return [hashlib.sha256(json.dumps([v.settings, release, source]).encode()).hexdigest()[:16] for v in variants]


def read_cells(results: Path) -> Iterator[Cell]:
    """What was found before."""
    for line in results.read_text().splitlines() if results.exists() else ():
        with contextlib.suppress(ValueError, TypeError):  # the last line of one that was killed
            yield Cell(**json.loads(line))


def source_hash() -> str:
    """Of all that a cell depends on, but for NeMo and what is installed beside torch."""
    places = [ROOT / source for source in SOURCES]
    files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    read = [path.read_bytes() for path in files if path.suffix in (".py", ".yaml")]
    return hashlib.sha256(b"".join([version("torch").encode(), *read])).hexdigest()[:16]
