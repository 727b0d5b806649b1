"""Gather evidence about the difference of two recordings, and write the report again with it.

    nest-ssl explain --reference outputs/nemo --candidate outputs/nest --out outputs/report

Both trainers run again on the configurations in their recordings: the reference with its recorded steps repeated one
unit in the last place away (what rounding alone can do), both in float64 and with their operators traced; and each
module of the candidate is given what the reference's was given. All of it lies in a folder `evidence` beside the
reference. Further options are those of `nest-ssl compare`, and so are the exit codes. A kind that cannot be had is
said, with what is less certain without it.

Kinds: replay, float64, floor, operators, schedule, observer; by default all, the last one for small models only.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import InterruptedRun, UserError
from nest_ssl.base.home import ROOT
from nest_ssl.run.doctor import available_memory

if TYPE_CHECKING:
    from nest_ssl.recording.index import Index
    from nest_ssl.run.evidence import Job

# Memory that a trainer takes in float64: so many times what it records of a step, and its libraries.
LANE, LEAST = 3.5, 1.5e9
SAID_EVERY = 10.0  # seconds: how long it will still take
POLL = 0.2  # seconds between two looks for a file that the other side is making
GRACE = 30.0  # seconds that a trainer has to end in, once it is asked to
BIN = "Scripts/python.exe" if os.name == "nt" else "bin/python"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the comparison's exit code.

    Raises:
        UserError: bad usage, or a recording that is missing or damaged.
    """
    options, further = _parser().parse_known_args(argv)
    from nest_ssl.cli.compare import asked_of, read_options, report_on
    from nest_ssl.recording.evidence import folder_beside
    from nest_ssl.run.compared import open_as_asked, refuse_ranks
    from nest_ssl.run.evidence import STOPPED, collect, kinds_to_gather, plan, prepare

    sides = ["--reference", str(options.reference), "--candidate", str(options.candidate)]
    comparing = read_options([*sides, "--out", str(options.out), *further])
    refuse_ranks(options.reference, options.candidate)
    opened = open_as_asked(options.reference, options.candidate, asked_of(comparing))
    reference, candidate = opened.reference, opened.candidate
    folder = folder_beside(options.reference)
    kinds = kinds_to_gather(options.evidence, reference, candidate)
    if not options.collect:
        jobs = plan(reference, candidate, folder, kinds, opened.asked.names)
        indexes = {"reference": reference.index, "candidate": candidate.index}
        if options.plan:
            prepare(folder, kinds)
            print(*(f"{job.log} {release_of(indexes[job.side])} {shlex.join(job.words)}" for job in jobs), sep="\n")
            return 0
        given = {"reference": options.reference_python, "candidate": options.candidate_python}
        commands = {side: command_of(side, given[side], index) for side, index in indexes.items()}
        prepare(folder, kinds)
        try:
            with sigterm_interrupts():
                JobRunner(jobs, commands, folder, reference.index).run()
        except (KeyboardInterrupt, InterruptedRun):
            collect(reference, candidate, folder, kinds, STOPPED)  # what is complete can be used
            raise
    for kind in collect(reference, candidate, folder, kinds).kinds:
        if not kind.had:
            print(f"explain: no {kind.kind}: {kind.why}; {kind.costs}")
    return report_on(comparing, opened.compare_and_picture)


def _parser() -> Parser:
    parser = Parser(prog="nest-ssl explain", description=__doc__)
    folders = {
        "--reference": ("outputs/nemo", "folder of the recording to measure against"),
        "--candidate": ("outputs/nest", "folder of the recording to judge"),
        "--out": ("outputs/report", "folder of the report"),
    }
    for option, (default, what) in folders.items():
        parser.add_argument(option, type=Path, default=Path(default), help=f"{what} (default {default})")
    parser.add_argument("--evidence", default="", help="the kinds to gather, with commas between them")
    for side in ("reference", "candidate"):
        what = f"command that starts the {side}'s Python (default: the environment of its release in .venv)"
        parser.add_argument(f"--{side}-python", metavar="COMMAND", help=what)
    parser.add_argument("--plan", action="store_true", help="run nothing: print each command: log, trainer, words")
    parser.add_argument("--collect", action="store_true", help="run nothing: take what these commands wrote")
    return parser


def release_of(index: Index) -> str:
    """What made a recording, as its environment and image are named: ``nest``, or ``nemo-3.0.0``."""
    return f"nemo-{index.trainer.version}" if index.trainer.package == "nemo_toolkit" else "nest"


def command_of(side: str, given: str | None, index: Index) -> list[str]:
    """What starts a side's Python: the words that are given, or the environment that `make setup` makes for it.

    Raises:
        UserError: these are no words, or there is no such program.
    """
    try:
        words = [str(ROOT / ".venv" / release_of(index) / BIN)] if not given else shlex.split(given)
    except ValueError as error:
        raise UserError("not the words of a command", f"--{side}-python {given}: {error}", "Close it.") from error
    if not words or shutil.which(words[0]) is None:
        fix = f"Run make setup, or give --{side}-python."
        raise UserError("no Python for this", words[0] if words else f"--{side}-python", fix)
    return words


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises, as Ctrl-C does: what was started has to be stopped, too.

    Raises:
        InterruptedRun: it came.
    """

    def interrupt(*_: object) -> None:
        raise InterruptedRun(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class JobRunner:
    """Runs the jobs, those of the two sides side by side where the machine has room, and says how long it will take.

    A job whose files are not there waits for the other side, and is not begun if that ends without having made them.

    Args:
        commands: of each side, what starts its Python.
        folder: of the logs.
        index: of the reference, for threads and sizes.
        verb: that what is said begins with.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        commands: Mapping[str, list[str]],
        folder: Path,
        index: Index,
        verb: str = "explain",
    ) -> None:
        self._jobs, self._commands, self._folder, self._verb = jobs, commands, folder, verb
        threads = index.threads.torch or 1
        self._workers = 2 if has_room(index, threads) else 1
        outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        self._environment = outside | {"OMP_NUM_THREADS": str(threads)}
        self._started: dict[str, float] = {}  # by log
        self._took: dict[str, float] = {}
        self._running: list[subprocess.Popen[bytes]] = []
        self._starting, self._stopped = threading.Lock(), False
        self._open = 0  # lanes that are not at their end
        self._done = threading.Event()

    def run(self) -> None:
        """All jobs. A process that fails is said, and the others go on.

        What interrupts this (Ctrl-C, SIGTERM) stops those that run and starts no other.
        """
        speaker = threading.Thread(target=self._speak, daemon=True)
        speaker.start()
        try:
            lanes = defaultdict(list)
            for job in self._jobs:
                lanes[job.side].append(job)
            self._open = min(len(lanes), self._workers)
            with ThreadPoolExecutor(self._workers) as pool:
                started = [pool.submit(self._run, lane) for lane in lanes.values()]
                try:
                    for lane in started:
                        lane.result()
                finally:  # at a signal, before the pool waits for its lanes
                    with self._starting:
                        self._stopped = any(not lane.done() for lane in started)
                        running = list(self._running)
                    for process in running:
                        process.terminate()
                    ends = time.monotonic() + GRACE  # of all, however many there are
                    for process in running:
                        try:
                            process.wait(max(0.0, ends - time.monotonic()))
                        except subprocess.TimeoutExpired:
                            process.kill()
        finally:
            self._done.set()

    def _run(self, lane: Sequence[Job]) -> None:
        try:
            for job in lane:
                missing = self._await(job)
                if self._stopped:
                    return
                if missing:
                    sys.stdout.write(f"{self._verb}: {job.side}: {job.what}: not begun, for there is no {missing}\n")
                else:
                    self._start(job)
        finally:
            with self._starting:
                self._open -= 1

    def _await(self, job: Job) -> Path | None:
        """Until the other side has made what it needs; what there is not, if that side has ended."""
        while True:
            missing = next((path for path in job.needs if not path.exists()), None)
            if missing is None or self._stopped or self._open < 2:
                return missing
            time.sleep(POLL)

    def _start(self, job: Job) -> None:
        script, *words = job.words
        command = [*self._commands[job.side], str(ROOT / script) if "/" in script else script, *words]
        path = self._folder / f"{job.log}.log"
        with path.open("wb") as log, self._starting:
            if self._stopped:
                return
            sys.stdout.write(
                f"{self._verb}: {job.side}: {job.what}, about {job.seconds:.0f} s\n"
            )  # whole: there are two
            self._started[job.log] = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
            self._running.append(process)
        code = process.wait()
        self._running.remove(process)
        self._took[job.log] = time.monotonic() - self._started[job.log]
        if code and not self._stopped:
            lines = path.read_text("utf-8", "replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            sys.stdout.write(f"{self._verb}: {job.side}: {job.what}: exit code {code}: {last.strip()[:300]}\n")
        sys.stdout.flush()

    def _speak(self) -> None:
        while not self._done.wait(SAID_EVERY):
            sys.stdout.write(f"{self._verb}: about {self.seconds_left():.0f} s left\n")
            sys.stdout.flush()

    def seconds_left(self) -> float:
        """By how long the jobs that are done took, beside what was expected of them."""
        now, expected = time.monotonic(), sum(job.seconds for job in self._jobs if job.log in self._took)
        pace = sum(self._took.values()) / expected if expected else 1.0
        lanes: dict[str, float] = defaultdict(float)
        for job in self._jobs:
            if job.log not in self._took:
                spent = now - self._started.get(job.log, now)
                lanes[job.side] += max(job.seconds * pace - spent, 0.0)
        return max(lanes.values(), default=0.0) if self._workers > 1 else sum(lanes.values())


def has_room(index: Index, threads: int) -> bool:
    """Whether two trainers fit beside each other: processors, and memory as far as the system says."""
    recorded = sum(entry.bytes for entry in index.files.values()) / max(1, len(index.steps))
    return (os.cpu_count() or 1) >= 2 * threads and available_memory() > 2 * (LANE * recorded + LEAST)
