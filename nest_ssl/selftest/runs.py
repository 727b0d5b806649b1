"""All cases, each in a process forked from this one, which has imported everything and trained nothing.

Results are kept as JSON lines, by what they depend on: a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, get_args

import torch

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import lock
from nest_ssl.recording import layout
from nest_ssl.report.detection import comparer_hash
from nest_ssl.selftest.cases import Case, Recipe
from nest_ssl.selftest.planting import PACKAGE, PORT
from nest_ssl.selftest.score import Score, is_caught
from nest_ssl.selftest.trial import Outcome, outcome_of, record_reference, trainer_under_test

SMALLEST = 1e-12  # relative; beyond it nothing is asked
SECONDS = 300.0  # for one case
RESULTS, REFERENCES = "results.jsonl", "references"
Forks = multiprocessing.get_context("fork")


@dataclass
class Runner:
    """Tries cases and keeps what came of them.

    Args:
        folder: for results and recordings.
        jobs: at once.
        say: shows a line.
    """

    folder: Path
    jobs: int
    say: Callable[[str], None] = print
    known: dict[str, Outcome] = field(default_factory=dict)  # by key
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        files = [path for room in PORT for path in sorted((PACKAGE / room).rglob("*.py"))]
        contents = b"".join(path.name.encode() + path.read_bytes() for path in files)
        self.sources = comparer_hash(), hashlib.sha256(contents).hexdigest()
        self._read_results()

    def _read_results(self) -> None:
        results = self.folder / RESULTS
        for line in results.read_text().splitlines() if results.exists() else ():
            with contextlib.suppress(ValueError):  # a line of one that was killed
                outcome = Outcome.model_validate_json(line)
                self.known[outcome.key] = outcome

    def outcome(self, case: Case, size: float | None = None) -> Outcome | None:
        """What came of a case at that size, by default its own, if it was tried."""
        return self.known.get(case.key(size, *self.sources))

    def scores(self, cases: Sequence[Case]) -> list[Score]:
        """How the cases went that were tried."""
        scores = []
        for case in cases:
            outcome, caught, sizes = self.outcome(case), self._caught(case), sizes_of(case)
            at = max((at for at, is_so in caught.items() if is_so), default=None)
            sought = at is not None and next_decade(caught, len(sizes)) is None
            if outcome is not None:
                scores.append(Score(case, outcome, sizes[at] if sought and at is not None else None))
        return scores

    def run(self, cases: Sequence[Case], limits: bool = True, seconds: float = math.inf) -> None:
        """Try all cases that were not tried yet; with `limits` those with a size also at ever smaller ones.

        Args:
            seconds: after which none is begun any more.

        Raises:
            UserError: a reference does not train, or another process runs in the same folder.
        """
        with lock(self.folder / ".lock", "self-test"):  # the references are one process's own
            self._read_results()
            self._run(cases, limits, seconds)

    def _run(self, cases: Sequence[Case], limits: bool, seconds: float) -> None:
        started, before = time.monotonic(), len(self.known)
        open_ends = [(case, size) for case in cases if (size := self._next(case, None, limits)) != 0.0]
        recipes = [recipe for recipe in get_args(Recipe) if any(case.recipe == recipe for case, _ in open_ends)]
        if not open_ends:
            return
        _warm_up()
        shutil.rmtree(self.folder / REFERENCES, ignore_errors=True)
        targets = {recipe: self.folder / REFERENCES / recipe for recipe in recipes}
        for several in (recipes[start : start + self.jobs] for start in range(0, len(recipes), self.jobs)):
            forks = [_fork(record_reference, self.folder / f"{each}.log", each, targets[each]) for each in several]
            for process in forks:
                process.join()
        for recipe, target in targets.items():
            if not any((target / "reference" / name).is_file() for name in (layout.INDEX, layout.RANKS)):
                raise UserError("the reference does not train", str(self.folder / f"{recipe}.log"), "See there.")
        running: dict[Any, tuple[Any, Case, float | None]] = {}
        while running or (open_ends and time.monotonic() - started < seconds):
            while open_ends and len(running) < self.jobs and time.monotonic() - started < seconds:
                case, size = open_ends.pop(0)
                process = _fork(self._try, self.folder / "log" / f"{case.key(size)}.log", case, size)
                running[process.sentinel] = process, case, size
            for sentinel in wait(list(running), timeout=SECONDS) or list(running):
                process, case, size = running.pop(sentinel)
                outcome = self._take(process, case, size)
                following = self._next(case, size, limits)
                if following != 0.0:
                    open_ends.append((case, following))  # behind all others: without limits a run is whole as well
                spent, done = time.monotonic() - started, len(self.known) - before
                left = spent / max(done, 1) * (len(open_ends) + len(running))
                at = "" if outcome.size is None else f" at {outcome.size:g}"
                found = outcome.error or f"{outcome.verdict} ({outcome.seconds:.1f} s)"
                self.say(f"selftest: {case.name}{at}: {found}; {len(open_ends) + len(running)} and more, {left:.0f} s")
        shutil.rmtree(self.folder / REFERENCES, ignore_errors=True)

    def _next(self, case: Case, size: float | None, limits: bool) -> float | None:
        """The size at which a case is to be tried next, None for its own, 0.0 for none."""
        if self.outcome(case, size) is None:
            return size
        following = next_decade(self._caught(case), len(sizes_of(case))) if limits else None
        return 0.0 if following is None else sizes_of(case)[following]

    def _caught(self, case: Case) -> dict[int, bool]:
        """Whether it was caught at each size that was tried, by its place in `sizes_of`."""
        tried = {number: self.outcome(case, size) for number, size in enumerate(sizes_of(case))}
        return {number: is_caught(case, outcome) for number, outcome in tried.items() if outcome is not None}

    def _try(self, case: Case, size: float | None) -> None:
        key = case.key(size, *self.sources)
        outcome = outcome_of(case, size, key, self.folder / REFERENCES, self.folder / "work" / key)
        line = "\n" + outcome.model_dump_json() + "\n"  # on a line of its own, whatever a killed one left
        descriptor = os.open(self.folder / RESULTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())  # one write: lines of two processes do not mix
        os.close(descriptor)

    def _take(self, process: Any, case: Case, size: float | None) -> Outcome:
        """What a process wrote about its case."""
        if process.is_alive():
            process.kill()
        process.join()
        key = case.key(size, *self.sources)
        if process.exitcode == 0:
            self._read_results()
        if key not in self.known:
            shown = case.size if size is None else size
            self.known[key] = Outcome(key=key, name=case.name, size=shown, error=f"ended with code {process.exitcode}")
        return self.known[key]


def sizes_of(case: Case) -> list[float]:
    """Its own size and the powers of ten below it; none where it has no size."""
    if case.size is None:
        return []
    decades = int(math.log10(case.size / SMALLEST)) + 1
    return [float(f"{case.size / 10**decade:.1e}") for decade in range(decades)]


def next_decade(caught: Mapping[int, bool], decades: int) -> int | None:
    """The decade to try next so that the smallest size that is caught is found in few trials; None where it is known.

    Args:
        caught: what was found at those that were tried; at the first, too.
        decades: that there are.
    """
    missed = min((at for at, is_so in caught.items() if not is_so), default=decades)
    known = max((at for at, is_so in caught.items() if is_so and at < missed), default=missed)
    # Most limits lie within three decades of the size that was chosen, so a step is never longer than two.
    return known + min(2, (missed - known) // 2) if missed - known > 1 else None


def _fork(work: Callable[..., None], log: Path, *arguments: Any) -> Any:
    """Start it in a process of its own, which shows nothing; its output is in `log`."""

    def child() -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as shown, contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            os.dup2(shown.fileno(), 1)
            os.dup2(shown.fileno(), 2)
            work(*arguments)

    process = Forks.Process(target=child)  # type: ignore[attr-defined]
    sys.stdout.flush()
    process.start()
    return process


def _warm_up() -> None:
    """Import what every case needs; nothing is trained here, for torch's backward does not survive a fork."""
    import soundfile  # noqa: F401

    torch.set_num_threads(1)
    trainer_under_test().load()
    gc.collect()  # what is imported is no garbage: a fork need not look through it, which would also copy it
    gc.freeze()
