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
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError

if TYPE_CHECKING:
    from nest_ssl.recording.index import Index
    from nest_ssl.run.evidence import Job

ROOT = Path(__file__).resolve().parents[2]
# Memory that a trainer takes in float64: so many times what it records of a step, and its libraries.
LANE, LEAST = 3.5, 1.5e9
SAID_EVERY = 10.0  # seconds: how long it will still take
BIN = "Scripts/python.exe" if os.name == "nt" else "bin/python"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the comparison's exit code.

    Raises:
        UserError: bad usage, or a recording that is missing or damaged.
    """
    options, further = _parser().parse_known_args(argv)
    from nest_ssl.cli.compare import main as compare
    from nest_ssl.recording.evidence import FOLDER
    from nest_ssl.recording.reader import open_recording
    from nest_ssl.run.evidence import collect, kinds_to_gather, plan, prepare

    reference, candidate = (open_recording(path, verify=False) for path in (options.reference, options.candidate))
    folder = options.reference.absolute().parent / FOLDER
    kinds = kinds_to_gather(options.evidence, reference, candidate)
    if not options.collect:
        prepare(folder, kinds)
        jobs = plan(reference, candidate, folder, kinds)
        if options.plan:
            print(*(f"{job.log} {job.side} {shlex.join(job.words)}" for job in jobs), sep="\n")
            return 0
        pythons = {"reference": options.reference_python, "candidate": options.candidate_python}
        indexes = {"reference": reference.index, "candidate": candidate.index}
        commands = {side: shlex.split(given or "") or python_of(side, indexes[side]) for side, given in pythons.items()}
        _Gathering(jobs, commands, folder, reference.index).run()
    for kind in collect(reference, candidate, folder, kinds).kinds:
        if not kind.had:
            print(f"explain: no {kind.kind}: {kind.why}; {kind.costs}")
    sides = ["--reference", str(options.reference), "--candidate", str(options.candidate)]
    return compare([*sides, "--out", str(options.out), *further])


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
    parser.add_argument("--plan", action="store_true", help="run nothing: print log, side and words of each command")
    parser.add_argument("--collect", action="store_true", help="run nothing: take what these commands wrote")
    return parser


def python_of(side: str, index: Index) -> list[str]:
    """The environment that `make setup` makes for a side's trainer.

    Raises:
        UserError: it is not there.
    """
    release = f"nemo-{index.trainer.version}" if index.trainer.package == "nemo_toolkit" else "nest"
    python = ROOT / ".venv" / release / BIN
    if not python.is_file():
        raise UserError("no Python for this", str(python), f"Run make setup, or give --{side}-python.")
    return [str(python)]


class _Gathering:
    """Runs the jobs, those of the two sides side by side where the machine has room, and says how long it will take.

    Args:
        commands: of each side, what starts its Python.
        folder: of the logs.
        index: of the reference, for threads and sizes.
    """

    def __init__(self, jobs: Sequence[Job], commands: Mapping[str, list[str]], folder: Path, index: Index) -> None:
        self._jobs, self._commands, self._folder = jobs, commands, folder
        threads = index.threads.torch or 1
        self._workers = 2 if has_room(index, threads) else 1
        outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        self._environment = outside | {"OMP_NUM_THREADS": str(threads)}
        self._started: dict[str, float] = {}  # by log
        self._took: dict[str, float] = {}
        self._running: list[subprocess.Popen[bytes]] = []
        self._done = threading.Event()

    def run(self) -> None:
        """All jobs, one stage after the other. A process that fails is said, and the others go on."""
        speaker = threading.Thread(target=self._speak, daemon=True)
        speaker.start()
        try:
            for stage in sorted({job.stage for job in self._jobs}):
                lanes = defaultdict(list)
                for job in self._jobs:
                    if job.stage == stage:
                        lanes[job.side].append(job)
                with ThreadPoolExecutor(self._workers) as pool:
                    list(pool.map(self._run, lanes.values()))
        finally:
            self._done.set()
            for process in self._running:
                process.terminate()

    def _run(self, lane: Sequence[Job]) -> None:
        for job in lane:
            script, *words = job.words
            command = [*self._commands[job.side], str(ROOT / script) if "/" in script else script, *words]
            sys.stdout.write(f"explain: {job.side}: {job.what}, about {job.seconds:.0f} s\n")  # whole: there are two
            self._started[job.log], path = time.monotonic(), self._folder / f"{job.log}.log"
            with path.open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
                self._running.append(process)
                code = process.wait()
            self._running.remove(process)
            self._took[job.log] = time.monotonic() - self._started[job.log]
            if code:
                lines = path.read_text("utf-8", "replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "")
                sys.stdout.write(f"explain: {job.side}: {job.what}: exit code {code}: {last.strip()[:300]}\n")
            sys.stdout.flush()

    def _speak(self) -> None:
        while not self._done.wait(SAID_EVERY):
            sys.stdout.write(f"explain: about {self.seconds_left():.0f} s left\n")
            sys.stdout.flush()

    def seconds_left(self) -> float:
        """By how long the jobs that are done took, beside what was expected of them."""
        now, expected = time.monotonic(), sum(job.seconds for job in self._jobs if job.log in self._took)
        pace = sum(self._took.values()) / expected if expected else 1.0
        lanes: dict[tuple[int, str], float] = defaultdict(float)
        for job in self._jobs:
            if job.log not in self._took:
                spent = now - self._started.get(job.log, now)
                lanes[job.stage, job.side] += max(job.seconds * pace - spent, 0.0)
        stages: dict[int, list[float]] = defaultdict(list)
        for (stage, _), seconds in lanes.items():
            stages[stage].append(seconds)
        return sum(max(seconds) if self._workers > 1 else sum(seconds) for seconds in stages.values())


def has_room(index: Index, threads: int) -> bool:
    """Whether two trainers fit beside each other: processors, and memory as far as the system says."""
    recorded = sum(entry.bytes for entry in index.files.values()) / max(1, len(index.steps))
    try:
        meminfo = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        available = 0
    return (os.cpu_count() or 1) >= 2 * threads and available > 2 * (LANE * recorded + LEAST)
