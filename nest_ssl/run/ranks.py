"""Several processes that train together (`ddp`): started here, watched, and recorded as one.

The command that is called trains nothing. It starts itself once for each rank, as Lightning's own launcher does, waits
until all have recorded into `rank_R`, and puts the whole into its place in one step. A rank that fails ends the others,
and the message says which it was. On several nodes each has such a command, started by torchrun, and the first node's
does all of this; the others start their ranks and say how these ended, in the folder that all share.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from nest_ssl.base.errors import EXIT_BAD_INPUT, EXIT_CRASHED, EXIT_OK, EXIT_SIGNAL, InterruptedRun, UserError
from nest_ssl.base.files import replace_folder, write_atomically
from nest_ssl.base.home import ROOT
from nest_ssl.config.section import plain
from nest_ssl.recording.layout import rank_folder
from nest_ssl.recording.ranks import write_ranks
from nest_ssl.recording.writer import reserved
from nest_ssl.run.nodes import Node, ended_file, store_of_torchrun
from nest_ssl.run.stall import ANSWER_S, Stalls, stall_file
from nest_ssl.run.subject import Subject

FOLDER = "NEST_SSL_RANKS"  # in the environment of a rank: where all record
OF_LAUNCHERS = (
    "SLURM_NTASKS RANK GROUP_RANK ROLE_RANK ROLE_NAME LOCAL_WORLD_SIZE GROUP_WORLD_SIZE ROLE_WORLD_SIZE".split()
)
GRACE_S = 3.0  # between the first rank that fails and the end of the others: they may know more


@dataclass(frozen=True)
class Rank:
    """This process, if it is one of several.

    Args:
        number: which, from 0.
        world_size: how many there are.
        folder: where all record until they are done.
    """

    number: int
    world_size: int
    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / rank_folder(self.number)

    def place(self, output_dir: str) -> Path:
        """Where the recording lies in the end."""
        return Path(output_dir) / rank_folder(self.number)

    def log(self, output_dir: str) -> Path:
        """What this rank's libraries print."""
        return Path(f"{output_dir}.{rank_folder(self.number)}.log")

    def reporting(self, train: Callable[[], int]) -> int:
        """Train; what goes wrong is left for the process that started this one, which says it."""
        try:
            return train()
        except UserError as error:
            failure, code = {"error": [error.what, error.where, error.fix]}, EXIT_BAD_INPUT
        except InterruptedRun:
            raise
        except Exception:  # noqa: BLE001
            failure, code = {"traceback": [traceback.format_exc()]}, EXIT_CRASHED
        write_atomically(failure_file(self.folder, self.number), json.dumps(failure))
        return code


class Together(Callback):
    """All ranks have the same number of batches: one that has more would wait for the others without end."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own, batches = trainer.num_training_batches, [None] * trainer.world_size
        torch.distributed.all_gather_object(batches, own)
        if len(set(batches)) > 1:
            where = ", ".join(f"rank {rank}: {number}" for rank, number in enumerate(batches))
            fix = "Share the data out evenly, or give trainer.limit_train_batches the least of them."
            raise UserError("the ranks have different numbers of batches", where, fix)


def stall_watch(seconds: float | None, rank: Rank | None, say: Callable[[str], None]) -> list[Callback]:
    """What ends a run in which a step takes longer than `seconds`, and a rank whose starter is gone.

    Args:
        say: shows a line, where there is no other process to do it.
    """

    def end_alone(text: str) -> None:
        say(f"error: a step stalled: {text}")
        os._exit(EXIT_BAD_INPUT)

    def await_end(_: str) -> None:
        time.sleep(2 * ANSWER_S)  # the process that started this one collects all answers and ends it before
        os._exit(EXIT_CRASHED)

    if rank is not None:
        return [Stalls(seconds, rank.number, rank.folder, await_end)]
    return [Stalls(seconds, 0, None, end_alone)] if seconds is not None else []


def processes(cfg: DictConfig) -> int:
    """How many processes are asked for: `cfg.trainer.devices` on each of `cfg.trainer.num_nodes`."""
    return _of_a_node(cfg) * int(cfg.trainer.get("num_nodes") or 1)


def _of_a_node(cfg: DictConfig) -> int:
    devices = plain(cfg.trainer.get("devices"))
    if str(devices) in ("-1", "auto", "None"):
        return max(1, torch.cuda.device_count())
    if isinstance(devices, list) or (isinstance(devices, str) and "," in devices):
        return len([part for part in (devices.split(",") if isinstance(devices, str) else devices) if part != ""])
    if not str(devices).isdecimal() or int(devices) < 1:
        raise UserError("not a number of devices", f"trainer.devices={devices}", "Give a whole number from 1.")
    return int(devices)


def own_rank() -> Rank | None:
    """This process, where it was started as one of several by `launch`."""
    if FOLDER not in os.environ:
        return None
    number = int(os.environ.get("RANK", os.environ["LOCAL_RANK"]))
    return Rank(number, int(os.environ["WORLD_SIZE"]), Path(os.environ[FOLDER]))


def of_torchrun(cfg: DictConfig) -> Node | None:
    """The node that torchrun started this process on; None where it started none.

    The first process of a node then starts its ranks as it would without torchrun, and the others have nothing to do.

    Raises:
        UserError: as another number of devices or nodes, as many as other nodes have not, or by another launcher.
    """
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if FOLDER in os.environ or "LOCAL_RANK" not in os.environ or number == 1:
        return None
    where, here = f"WORLD_SIZE={number}", os.environ.get("LOCAL_WORLD_SIZE")
    if here is None:
        raise UserError("started by another launcher than torchrun", where, "Start one process: trainer.devices=N.")
    each, nodes, which = int(here), int(os.environ.get("GROUP_WORLD_SIZE", "1")), int(os.environ.get("GROUP_RANK", "0"))
    if each * nodes != number:
        where += f", LOCAL_WORLD_SIZE={here} on node {which} of {nodes}"
        raise UserError("the nodes have different numbers of processes", where, "Give all --nproc-per-node=N.")
    if _of_a_node(cfg) not in (1, each):
        where = f"trainer.devices={plain(cfg.trainer.devices)}"
        raise UserError(f"torchrun started {each} processes", where, f"Give trainer.devices={each}.")
    if (asked := cfg.trainer.get("num_nodes") or 1) not in (1, nodes):
        raise UserError(
            f"torchrun started {nodes} nodes", f"trainer.num_nodes={asked}", f"Give {nodes}, or leave it out."
        )
    # One node needs no name of itself: torchrun gives one that a container without a network cannot look up.
    address = os.environ.get("MASTER_ADDR", "127.0.0.1") if nodes > 1 else "127.0.0.1"
    return Node(which, nodes, each, address, store_of_torchrun(nodes, which))


def launch(subject: Subject, cfg: DictConfig, words: Sequence[str], number: int, node: Node | None = None) -> int:
    """Start this node's ranks with the command line `words`; the first node completes the recording of all.

    Args:
        number: of ranks, on all nodes.

    Returns:
        The exit code.

    Raises:
        UserError: what a rank reports, or one was killed.
        RuntimeError: a rank crashed; it has the traceback.
    """
    target, started, node = Path(cfg.output_dir).absolute(), time.perf_counter(), node or Node()
    with ExitStack() as running:
        own = running.enter_context(reserved(target, cfg.overwrite)) if node.number == 0 else None
        folder, port = node.meet(own, plain(cfg))
        command = [str(ROOT / "scripts" / f"train_{subject.name}.py"), *words]
        ranks = _start(running, command, folder, number, node, port)
        with _handing_on_signals(list(ranks.values())) as caught:
            codes = _wait(ranks, folder, range(number) if node.number == 0 else ranks, number)
        failed = _first_that_failed(codes, folder)
        if node.number > 0:
            _say_ended(folder, node, ranks, codes)
        if caught:
            return EXIT_SIGNAL + caught[0]
        if node.number > 0:
            if failed is None and None not in codes.values():
                return EXIT_OK
            where = f"node {node.number} of {node.nodes}, ranks {min(ranks)} to {max(ranks)}"
            raise UserError("the run has failed", where, "The first node says what happened.")
        if stalled := {rank for rank in range(number) if stall_file(folder, rank).exists()}:
            for rank in range(number):
                lines = stall_file(folder, rank).read_text() if rank in stalled else f"rank {rank}: no answer\n"
                print(lines, end="", file=sys.stderr)
            where = f"no rank came further within trainer.stall_timeout={cfg.trainer.stall_timeout} seconds"
            fix = "Above is where each of them was. Nothing was recorded."
            raise UserError("a step stalled", where, fix)
        if failed is not None:
            _raise_failure(failed, codes, number, folder, cfg.output_dir)
        if not (folder / rank_folder(0)).exists():  # nothing was left to train, and the first has said so
            return EXIT_OK
        write_ranks(folder, number)
        for left in folder.glob("*.txt"):
            left.unlink()
        replace_folder(folder, target)
    took = time.perf_counter() - started
    print(f"{subject.name}: {number} ranks recorded in {cfg.output_dir}/rank_0 to rank_{number - 1} ({took:.1f} s)")
    return EXIT_OK


def failure_file(folder: Path, rank: int) -> Path:
    return folder / f"failure_{rank}.txt"


def said_file(folder: Path, rank: int) -> Path:
    return folder / f"said_{rank}.txt"


def _start(
    running: ExitStack, command: list[str], folder: Path, number: int, node: Node, port: int
) -> dict[int, subprocess.Popen[bytes]]:
    """The ranks of this node. The very first writes to this process's terminal; each is its own session, for signals
    come from here."""
    # Lightning would take a job of SLURM's, or torchrun, for the launcher.
    inherited = {name: value for name, value in os.environ.items()
                 if name not in OF_LAUNCHERS and not name.startswith("TORCHELASTIC_")}  # fmt: skip
    addresses = {"MASTER_ADDR": node.address, "MASTER_PORT": str(port), "NODE_RANK": str(node.number)}
    if sys.platform == "linux" and node.address in ("127.0.0.1", "localhost"):
        # gloo would look for this machine's name, which a container without a network lacks
        inherited.setdefault("GLOO_SOCKET_IFNAME", "lo")
    ranks, each = {}, node.ranks or number
    for local in range(each):
        rank = node.number * each + local
        place = {"LOCAL_RANK": str(local), "RANK": str(rank), "WORLD_SIZE": str(number), FOLDER: str(folder)}
        streams: dict[str, Any] = {}
        if rank:
            said = running.enter_context(said_file(folder, rank).open("wb"))
            streams = {"stdout": said, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(
            [sys.executable, *command], env={**inherited, **addresses, **place}, start_new_session=True, **streams
        )
        running.enter_context(process)
        running.callback(process.kill)  # before it is waited for
        ranks[rank] = process
    return ranks


def _wait(
    ranks: dict[int, subprocess.Popen[bytes]], folder: Path, awaited: Iterable[int], number: int
) -> dict[int, int | None]:
    """Wait for the ranks `awaited`, on whichever node, of `number`; how each has ended. If one fails, others do because
    of it."""
    deadline = float("inf")
    while True:
        codes = dict.fromkeys(awaited) | {rank: process.poll() for rank, process in ranks.items()}
        for ended in folder.glob("ended_*.txt"):  # of other nodes
            codes |= {int(rank): code for rank, code in json.loads(ended.read_text()).items() if int(rank) in codes}
        said = len(list(folder.glob("stall_*.txt")))
        all_done = all(code is not None for code in codes.values())
        if all_done or said == number or time.monotonic() > deadline or not folder.is_dir():
            return codes
        if deadline == float("inf") and (said or any(codes.values())):
            deadline = time.monotonic() + (ANSWER_S if said else GRACE_S)
        time.sleep(0.05)


def _say_ended(
    folder: Path, node: Node, ranks: dict[int, subprocess.Popen[bytes]], codes: dict[int, int | None]
) -> None:
    """For the first node; a rank that still waits for another one ends here."""
    for process in ranks.values():
        process.kill()
    written = folder / f".ended_{node.number}"
    with suppress(FileNotFoundError):  # the first node deletes the folder when it has given up
        written.write_text(json.dumps({rank: code for rank, code in codes.items() if code is not None}))
        written.replace(ended_file(folder, node.number))


def _first_that_failed(codes: dict[int, int | None], folder: Path) -> int | None:
    failed = [rank for rank, code in codes.items() if code]

    def first(rank: int) -> tuple[bool, bool, float]:
        """One that was killed left nothing; one with something to mend is the cause of connections that broke."""
        report = failure_file(folder, rank)
        if not report.exists():
            return False, False, 0.0
        return True, "error" not in json.loads(report.read_text()), report.stat().st_mtime

    return min(failed, key=first, default=None)


def _raise_failure(rank: int, codes: dict[int, int | None], number: int, folder: Path, output_dir: str) -> None:
    which, code = f"rank {rank} of {number}", codes[rank] or 0
    reports = [path.read_text() for path in (failure_file(folder, each) for each in range(number)) if path.exists()]
    if not failure_file(folder, rank).exists():
        log = Path(f"{output_dir}.{rank_folder(rank)}.log")
        if code < 0:
            fix = "Nothing was recorded. SIGKILL often means that memory ran out."
            raise UserError(f"{which} was killed", f"{signal.Signals(-code).name}; its log is {log}", fix)
        said = said_file(folder, rank)
        more = said.read_text(errors="replace")[-2000:] if said.exists() else ""
        raise RuntimeError(f"{which} ended with exit code {code}; its log is {log}\n{more}")
    failure = json.loads(failure_file(folder, rank).read_text())
    if "error" in failure:
        what, where, fix = failure["error"]
        same = len(reports) == number and len(set(reports)) == 1
        raise UserError(what if same else f"{which}: {what}", where, fix)
    text = failure["traceback"][0]
    raise RuntimeError(f"{which}: {text.strip().splitlines()[-1]}\n{text}")


@contextmanager
def _handing_on_signals(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """While this is open, SIGINT and SIGTERM go to the ranks; yields those that came."""
    caught: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
