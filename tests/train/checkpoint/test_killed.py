"""A run that is killed or terminated again and again, in real processes, ends with the bits of one left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.base.errors import EXIT_CRASHED
from tests.train.checkpoint.resuming import COMMON, assert_same

PROGRAM = Path(__file__).with_name("killed.py")
STEPS, SEED = 20, 36
# 4 epochs of 5 batches, a validation in the middle and at the end of every second, checkpoints also between them.
SETTINGS = (*COMMON, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "trainer.val_check_interval=0.5",
            "exp_manager.checkpoint_callback_params.every_n_train_steps=4")  # fmt: skip


@dataclass(frozen=True)
class Workers:
    """Two that need so many seconds for an utterance, so that the trainer waits for them most of the time; or none."""

    number: int = 2
    seconds: float = 0.05
    shielded: bool = True


NONE, SHIELDED, BARE = Workers(0, 0.0), Workers(), Workers(shielded=False)


@dataclass(frozen=True)
class Stop:
    """How a run is stopped: a signal to the trainer, or to its group: the workers get it too, as by Ctrl-C."""

    kind: signal.Signals
    workers: Workers = NONE

    @property
    def name(self) -> str:
        return f"{self.kind.name}{'-to-the-group' if self.workers.number else ''}"

    @property
    def code(self) -> int:
        return -self.kind if self.kind == signal.SIGKILL else 128 + self.kind

    def send(self, pid: int) -> None:
        (os.killpg if self.workers.number else os.kill)(pid, self.kind)


STOPS = (Stop(signal.SIGKILL), Stop(signal.SIGTERM), Stop(signal.SIGTERM, SHIELDED),
         Stop(signal.SIGINT, SHIELDED))  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """So many seconds behind the beginning of a training step, counted from the very first."""

    step: int
    delay: float


def moments(stop: Stop) -> list[Moment]:
    """Not in the last five steps: what comes a tenth of a second behind their beginning may find training done."""
    draw = random.Random(SEED + stop.kind)
    steps = sorted(draw.sample(range(STEPS - 5), 2 if stop.workers.number else 5))
    return [Moment(step, draw.uniform(0, 0.1)) for step in steps]


def train(
    python: str, folder: Path, workers: Workers = NONE, stop: Stop | None = None, moment: Moment | None = None
) -> int:
    """Train in a process of its own, and stop it; its exit code (minus the signal that killed it)."""
    folder.mkdir(exist_ok=True)
    place = (f"output_dir={folder / 'recording'}", f"exp_manager.exp_dir={folder}", "exp_manager.name=x")
    how = (str(workers.seconds), "shielded" if workers.shielded else "bare")
    command = [python, str(PROGRAM), *how, *SETTINGS, *place, f"model.train_ds.num_workers={workers.number}"]
    with (
        (folder / "said.txt").open("a") as said,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        if stop is not None and moment is not None:
            for line in process.stdout:
                if int(line) >= moment.step:
                    break
            time.sleep(moment.delay)
            stop.send(pid)
        for _ in process.stdout:  # so that it never waits for its reader
            pass
    return process.returncode


def stopped_again_and_again(python: str, folder: Path, stop: Stop) -> list[int]:
    codes = [train(python, folder, stop.workers, stop, moment) for moment in moments(stop)]
    return [*codes, train(python, folder, stop.workers)]


ALONE = {"alone": NONE, "alone, shielded": SHIELDED, "alone, bare": BARE}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, python: str) -> Iterator[dict[str, tuple[Path, Future[list[int]]]]]:
    """Folder and exit codes of the runs left alone and of those that were not; two at a time."""
    folder = tmp_path_factory.mktemp("killed")
    with ThreadPoolExecutor(2) as pool:
        futures = {stop.name: pool.submit(stopped_again_and_again, python, folder / stop.name, stop) for stop in STOPS}
        for name, workers in ALONE.items():
            futures[name] = pool.submit(lambda *of: [train(*of)], python, folder / name, workers)
        yield {name: (folder / name, codes) for name, codes in futures.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.name)
def test_the_same_bits_after_signals_at_random_moments(runs: dict[str, Any], stop: Stop) -> None:
    print(f"{stop.name} at (step, seconds behind its beginning): {moments(stop)}")
    alone, of_alone = runs["alone, shielded" if stop.workers.number else "alone"]
    folder, codes = runs[stop.name]
    *stopped, done = codes.result()
    said = (folder / "said.txt").read_text()
    assert of_alone.result() == [0] and done == 0, said
    assert stopped == [stop.code] * len(moments(stop)), said
    assert said.count("note: resuming from") >= len(stopped) - 1 and "Traceback" not in said
    assert_same(alone, folder, killed=stop.code == -signal.SIGKILL)
    assert not list((folder / "x").rglob(".*.partial-*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_shielded_workers_are_seeded_as_lightning_seeds_them(runs: dict[str, Any]) -> None:
    (shielded, codes), (bare, of_bare) = runs["alone, shielded"], runs["alone, bare"]
    assert codes.result() == of_bare.result() == [0]
    assert_same(shielded, bare)


@pytest.mark.slow
@pytest.mark.usefixtures("crashes")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_workers_without_the_shield_die_of_the_signal_and_end_the_training(
    tmp_path: Path, python: str, kind: signal.Signals
) -> None:
    """The fault, planted: a signal while the trainer waits for a batch."""
    slow = Workers(seconds=1, shielded=False)
    assert train(python, tmp_path / "bare", slow, Stop(kind, slow), Moment(1, 0.5)) == EXIT_CRASHED
