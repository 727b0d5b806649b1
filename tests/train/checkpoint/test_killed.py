"""A run that is killed or terminated again and again, in real processes, ends with the bits of one left alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from train_nest import NEST

from nest_ssl.base.errors import run_command
from nest_ssl.run.experiment import run
from nest_ssl.train.module import NestModule
from tests.train.checkpoint.resuming import COMMON, assert_same

STEPS, MOMENTS, SEED = 30, 5, 20
KINDS = (signal.SIGKILL, signal.SIGTERM)
# 6 epochs of 5 batches, a validation in the middle and at the end of every second, checkpoints also between them.
SETTINGS = (*COMMON, "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=2", "trainer.val_check_interval=0.5",
            "exp_manager.checkpoint_callback_params.every_n_train_steps=4")  # fmt: skip
# Children are forked from a server that has imported everything: a real process each, without 4 s of importing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["nest_ssl.run.experiment", "nest_ssl.train.module"])


@dataclass(frozen=True)
class Moment:
    """So many seconds behind the beginning of a training step, counted from the very first."""

    step: int
    delay: float


def moments(kind: signal.Signals) -> list[Moment]:
    draw = random.Random(SEED + kind)
    return [Moment(step, draw.uniform(0, 0.1)) for step in sorted(draw.sample(range(STEPS), MOMENTS))]


def child(folder: Path, said: Path, steps: Connection) -> None:
    """Train in this process; `steps` gets the number of every training step as it begins."""
    log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    original = NestModule.training_step

    def told(self: NestModule, *args: Any, **kwargs: Any) -> Any:
        steps.send(self.trainer.fit_loop.total_batch_idx)
        return original(self, *args, **kwargs)

    NestModule.training_step = told
    place = (f"output_dir={folder / 'recording'}", f"exp_manager.exp_dir={folder}", "exp_manager.name=x")
    run_command(lambda: run(NEST, [*SETTINGS, *place]))


def train(folder: Path, kind: signal.Signals | None = None, moment: Moment | None = None) -> int:
    """Train in a process of its own, and send it a signal; its exit code (minus the signal that killed it)."""
    folder.mkdir(exist_ok=True)
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=child, args=(folder, folder / "said.txt", there))
    process.start()
    there.close()
    if kind is not None and moment is not None:
        with contextlib.suppress(EOFError):
            while here.recv() < moment.step:
                pass
        time.sleep(moment.delay)
        os.kill(process.pid, kind)
    process.join()
    here.close()
    return int(process.exitcode)


def stopped_again_and_again(folder: Path, kind: signal.Signals) -> list[int]:
    return [*(train(folder, kind, moment) for moment in moments(kind)), train(folder)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, Future[list[int]]]]]:
    """Folder and exit codes of the run left alone and of those that were not; two at a time."""
    folder = tmp_path_factory.mktemp("killed")
    with ThreadPoolExecutor(2) as pool:
        stopped = {kind.name: pool.submit(stopped_again_and_again, folder / kind.name, kind) for kind in KINDS}
        whole = pool.submit(lambda: [train(folder / "whole")])
        yield {name: (folder / name, codes) for name, codes in {**stopped, "whole": whole}.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_same_bits_after_signals_at_random_moments(runs: dict[str, Any], kind: signal.Signals) -> None:
    print(f"{kind.name} at (step, seconds behind its beginning): {moments(kind)}")
    whole, of_whole = runs["whole"]
    folder, codes = runs[kind.name]
    *stopped, done = codes.result()
    said = (folder / "said.txt").read_text()
    assert of_whole.result() == [0] and done == 0, said
    assert stopped == [-kind if kind == signal.SIGKILL else 128 + kind] * MOMENTS, said
    assert said.count("note: resuming from") >= MOMENTS - 1 and "Traceback" not in said
    assert_same(whole, folder)
    assert not list((folder / "x").rglob(".*.partial-*"))
