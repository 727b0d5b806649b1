"""The two trainers of `make align`: at once where the machine has room, else one behind the other; and says which.

    side_by_side.py "$PARALLEL" --and scripts/with_words.sh WORDS PYTHON scripts/train_nemo.py KEY=VALUE ... --and ...

Room is a core for each thread of both, and twice the memory that a trainer of this size takes with the practice data.
It is not known with a GPU, nor with words that change what a trainer takes; and what one takes from the other's folder
has to be there first. PARALLEL 1 and 0 decide without asking.

At once, each line is shown when it is whole, with the name of its trainer. Each trainer leaves its settings in a folder
that both know, and whoever comes second says, before it trains, whether they are of one experiment
(nest_ssl/run/same_experiment.py). One that fails ends the other; the exit code is that of the first that fails.
"""

from __future__ import annotations

import ctypes
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

NAMES = ("nemo", "nest")
AND = "--and"
MEETING = "NEST_SSL_MEETING"  # in the environment of both: where they leave their settings
# GB that a trainer is given room for with the practice data: measured up to large, where NeMo took 7.1 at the most
# (RUN=full, which takes more than quick); beyond it in proportion to what `nest-ssl doctor` reckons.
MEMORY = {"tiny": 1.2, "small": 2.7, "medium": 3.3, "large": 7.5, "xlarge": 29.0, "xxlarge": 50.0}
UNKNOWN = ("-", "model.", "model=", "trainer.", "trainer=", "noise_floor")  # beginnings of words that change it
GPUS = ("/dev/nvidiactl", "/dev/kfd")
GRACE = 30.0  # seconds that a trainer has to end in when the other has failed; a step of the large model takes fewer
PR_SET_PDEATHSIG = 1  # by its number in Linux's prctl.h
LAST_WORDS = 5.0  # seconds for the output of one that has ended, which a process that it left behind may keep open


def main(words: list[str]) -> int:
    """Train with both; returns the exit code."""
    parallel, *rest = words
    starts = [number for number, word in enumerate(rest) if word == AND]
    commands = [rest[start + 1 : end] for start, end in zip(starts, [*starts[1:], len(rest)], strict=True)]
    at_once, why = decide(parallel, commands)
    write(1, f"align: trains {'both at once' if at_once else 'one behind the other'}: {why}\n")
    pair = Pair()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for nohup, and for background jobs of a shell
            signal.signal(number, pair.stop)
    if not at_once:
        return next((code for command in commands if (code := pair.alone(command))), 0)
    with tempfile.TemporaryDirectory(prefix="nest-ssl-align-") as meeting:
        return pair.at_once(commands, {**os.environ, MEETING: meeting})


# --- Is there room --------------------------------------------------------------------------------------------------


def decide(parallel: str, commands: list[list[str]]) -> tuple[bool, str]:
    """Whether to train both at once, and why or why not."""
    if parallel:
        return parallel == "1", f"PARALLEL={parallel}"
    try:
        own = [[word.lstrip("+~") for word in shlex.split(command[1])] for command in commands]
    except ValueError:  # with_words.sh is going to say it
        return False, "a quote is not closed"
    each = [
        dict(word.partition("=")[::2] for word in (*cmd[2:], *words)) for cmd, words in zip(commands, own, strict=True)
    ]
    sizes = [settings["size"] for settings in each]
    unknown = [word for words in own for word in words if word.startswith(UNKNOWN)]
    unknown += [f"size={size}" for size in sizes if size not in MEMORY]
    ranks = int(each[0].get("trainer.devices", "1"))
    cores, wanted_cores = usable_cores(), 2 * ranks * int(os.environ.get("OMP_NUM_THREADS", "1"))
    memory, wanted = free_memory(), ranks * sum(MEMORY.get(size, 0) for size in sizes)
    free = "how much is free is not known here" if memory is None else f"{memory:.1f} GB are free"
    taken = [word for words in own for word in words if names_any(word, [it.get("output_dir", "") for it in each])]
    refused = {
        f"{' '.join(taken[:1])} is of the other's folder": bool(taken),
        "a GPU is not shared (DEVICE=cpu does without)": may_use_gpu(each[0]["trainer.accelerator"]),
        f"what memory {' '.join(unknown[:1])} takes is not known": bool(unknown),
        f"{wanted_cores} cores are wanted, and {cores} may be used": cores < wanted_cores,
        f"{wanted:.1f} GB of memory are wanted, and {free}": memory is None or memory < wanted,
    }
    if why := next((reason for reason, holds in refused.items() if holds), None):
        return False, f"{why}. PARALLEL=1 trains both at once all the same"
    room = f"{cores} cores, and {memory:.1f} GB of memory for {wanted:.1f}"
    return True, f"{room}. PARALLEL=0 trains one behind the other"


def may_use_gpu(device: str) -> bool:
    """Whether a trainer takes a GPU, as far as can be said without torch."""
    return device not in ("auto", "cpu") or (
        device == "auto" and (sys.platform != "linux" or any(map(os.path.exists, GPUS)))
    )


def names_any(word: str, folders: list[str]) -> bool:
    """Whether a setting's value has the path of one of the folders in it, or of what lies in it."""
    value = word.partition("=")[2]
    paths = [path for folder in folders if folder for path in {folder, os.path.abspath(folder)}]
    return any(path in text for path in paths for text in (value, os.path.abspath(value)))


def groups(root: Path) -> list[Path]:
    """Folders of the group of processes that this one is in, and of those round it: each may be limited.

    In a container of its own the group is the outermost folder; in a job of a cluster it lies deeper.
    """
    top = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [top]
    own = next((top / line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), top)
    return [own, *(folder for folder in own.parents if folder.is_relative_to(top))]


def usable_cores(root: Path = Path("/")) -> int:
    """Of this process; no more than its groups of processes are limited to."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in groups(root):
        with suppress(OSError, ValueError):  # no such group, or "max"
            quota, period = (group / "cpu.max").read_text().split()
            cores = min(cores, int(quota) // int(period))
    return cores


def free_memory(root: Path = Path("/")) -> float | None:
    """In GB, no more than the groups of processes are limited to; None where the system does not say."""
    try:
        facts = dict(line.split()[:2] for line in (root / "proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable:"]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for group in groups(root):
        with suppress(OSError, KeyError, ValueError):
            limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
            cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
            free = min(free, limit - used + int(cached))
    return free / 1e9


# --- Training -------------------------------------------------------------------------------------------------------


class Pair:
    """Two programs, of which none is left when this one ends; where it is killed, as soon as they have cleaned up."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped = 0
        self._printing = threading.Lock()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """A signal came. Ctrl-C of a terminal has come to the programs too; others are handed on."""
        self._stopped = number
        for process in self._running if number != signal.SIGINT else ():
            process.send_signal(number)

    def alone(self, command: list[str]) -> int:
        """Run a program with the streams of this one; returns its exit code."""
        if self._stopped:
            return 128 + self._stopped
        self._running = [subprocess.Popen(command, preexec_fn=ends_with(os.getpid()))]
        return exit_code(self._running[0].wait())

    def at_once(self, commands: list[list[str]], environment: dict[str, str]) -> int:
        """Run both; returns the exit code of the first that fails, which ends the other."""
        ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        showing = []
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        for command in commands:  # no thread runs yet
            self._running.append(subprocess.Popen(command, **pipes, env=environment, preexec_fn=ends_with(os.getpid())))
        for number, process in enumerate(self._running):
            threading.Thread(target=lambda n=number, p=process: ended.put((n, p.wait())), daemon=True).start()
            for out, stream in ((1, process.stdout), (2, process.stderr)):
                showing.append(threading.Thread(target=self._show, args=(NAMES[number], stream, out), daemon=True))
                showing[-1].start()
        if self._stopped:  # before both were there to be given it
            self.stop(signal.SIGTERM, None)
        codes: list[int] = []
        patience = None
        while len(codes) < len(commands):
            try:
                number, code = ended.get(timeout=patience)
            except queue.Empty:
                patience = None
                self._running[1 - number].kill()
                continue
            codes.append(exit_code(code))
            if code and len(codes) == 1 and not self._stopped:
                patience = GRACE
                self._end(number, codes[0])
        for thread in showing:
            thread.join(LAST_WORDS)
        return next((code for code in codes if code), 0)

    def _end(self, failed: int, code: int) -> None:
        """Have the other one end, as by Ctrl-C, so that it removes what it has half written."""
        other = self._running[1 - failed]
        if other.poll() is None:
            with self._printing:
                write(2, f"align: {NAMES[failed]} ended with exit code {code}, so {NAMES[1 - failed]} is ended too\n")
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # there too, then
            other.send_signal(signal.SIGTERM if ignored else signal.SIGINT)

    def _show(self, name: str, stream: IO[bytes], out: int) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip("\n")
            with self._printing:
                write(out, text + "\n" if text.startswith(f"{name}:") else f"{name}: {text}\n")


def ends_with(parent: int) -> Callable[[], None] | None:
    """What a program does before it starts, so that it is given SIGTERM when this process is killed; on Linux alone."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it was killed before that
            os._exit(128 + signal.SIGTERM)

    return bind


def write(out: int, text: str) -> None:
    """To a stream that may have no reader any more, which changes no exit code."""
    left = text.encode()
    with suppress(OSError):
        while left:
            left = left[os.write(out, left) :]


def exit_code(code: int) -> int:
    """As shells have it where a signal has ended a program."""
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
