"""Ranks are started, watched and put together: here by programs that train nothing, so that a start costs nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from train_nest import NEST

from nest_ssl.base.errors import UserError
from nest_ssl.recording.ranks import read_ranks
from nest_ssl.run import nodes
from nest_ssl.run import ranks as module
from nest_ssl.run.nodes import Node
from nest_ssl.run.ranks import Rank, Together, launch, of_torchrun, own_rank, processes

# What a rank does: an index as a recording has it, or a fault: the last rank the first word, all others the second.
RANK = """
import json, os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(os.environ["NEST_SSL_RANKS"])
print("rank", rank, "of", os.environ["WORLD_SIZE"], *sys.argv[1:], flush=True)
fault = sys.argv[1] if rank == int(os.environ["WORLD_SIZE"]) - 1 else sys.argv[2]
if fault == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if fault in ("mistake", "crash"):
    report = {"error": ["no such file", "a.json", "Look."]} if fault == "mistake" else {"traceback": ["ValueError: x"]}
    (folder / f"failure_{rank}.txt").write_text(json.dumps(report))
    sys.exit(3 if fault == "mistake" else 70)
if fault == "silent":
    sys.exit("bad luck")
if fault in ("stalls", "mute"):
    if fault == "stalls":
        said = f"rank {rank}: step 2, forward for 3 s, last module encoder.layers.1\\n"
        (folder / f"stall_{rank}.txt").write_text(said)
    time.sleep(60)
if fault == "waits":
    (folder.parent / f"waits_{rank}").touch()
    time.sleep(60)
own = folder / f"rank_{rank}"
own.mkdir()
own.joinpath("recording.json").write_text("{}")
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`start("killed", "waits")`: two ranks, of which rank 1 does the first and rank 0 the second."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train_nest.py").write_text(RANK)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "GRACE_S", 0.3)
    cfg = OmegaConf.create(
        {"output_dir": str(tmp_path / "out" / "run"), "overwrite": True, "trainer": {"stall_timeout": 3}}
    )
    (tmp_path / "out").mkdir()
    return lambda *faults, number=2, node=None: launch(NEST, cfg, faults, number, node)


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith("waits"))


def test_all_ranks_are_one_recording(
    start: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start("", "") == 0
    assert sorted(path.name for path in (tmp_path / "out/run").iterdir()) == ["rank_0", "rank_1", "ranks.json"]
    said = capfd.readouterr().out
    assert "rank 0 of 2" in said and "rank 1 of 2" not in said and "2 ranks recorded in" in said


@pytest.mark.parametrize(
    ("faults", "error", "line"),
    [
        (("killed", "waits"), UserError, "rank 1 of 2 was killed: SIGKILL; its log is .*run.rank_1.log"),
        (("killed", "crash"), UserError, "rank 1 of 2 was killed"),  # the crash is its connection that broke
        (("waits", "killed"), UserError, "rank 0 of 2 was killed"),
        (("mistake", "waits"), UserError, "^rank 1 of 2: no such file: a.json. Look."),
        (("mistake", "crash"), UserError, "^rank 1 of 2: no such file"),
        (("mistake", "mistake"), UserError, "^no such file: a.json. Look."),
        (("crash", "waits"), RuntimeError, "rank 1 of 2: ValueError: x"),
        (("silent", "waits"), UserError | RuntimeError, "rank 1 of 2 ended with exit code 1(.|\n)*bad luck"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_rank_that_fails_is_named_and_ends_the_others(
    start: Callable[..., int], tmp_path: Path, faults: tuple[str, str], error: type[Exception], line: str
) -> None:
    kinds = (UserError, RuntimeError) if faults[0] == "silent" else error
    began = time.monotonic()
    with pytest.raises(kinds, match=line):
        start(*faults)
    assert left(tmp_path) == [] and time.monotonic() - began < 30


@pytest.mark.parametrize("other", ["stalls", "mute"])
def test_a_step_that_stalls(
    start: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    other: str,
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.3)
    with pytest.raises(UserError, match=r"a step stalled: no rank came further within trainer.stall_timeout=3 seconds"):
        start("stalls", other)
    said = capsys.readouterr().err
    assert "rank 1: step 2, forward for 3 s, last module encoder.layers.1\n" in said
    assert ("rank 0: step 2" if other == "stalls" else "rank 0: no answer") in said
    assert left(tmp_path) == []


@pytest.fixture
def start_two_nodes(
    start: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, int]]:
    """`start_two_nodes("killed", "waits")`: two ranks on each of two nodes, the second one a fork of this process; what
    the first one returns or raises, and the second one's exit code."""
    monkeypatch.setattr(nodes, "MEET_S", 20.0)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)

    def on(number: int, faults: tuple[str, ...]) -> int:
        return start(*faults, number=4, node=Node(number, 2, 2, "127.0.0.1", store))

    def second(faults: tuple[str, ...]) -> None:
        try:
            sys.exit(on(1, faults))
        except UserError:
            sys.exit(3)

    def both(*faults: str) -> tuple[Any, int]:
        other = multiprocessing.get_context("fork").Process(target=second, args=(faults,))
        other.start()
        try:
            found: Any = on(0, faults)
        except UserError as error:
            found = str(error)
        other.join(20)
        return found, other.exitcode if other.exitcode is not None else -1

    return both


def test_ranks_of_two_nodes_are_one_recording(start_two_nodes: Callable[..., tuple[Any, int]], tmp_path: Path) -> None:
    assert start_two_nodes("", "") == (0, 0)
    names = [*(f"rank_{rank}" for rank in range(4)), "ranks.json"]
    assert sorted(path.name for path in (tmp_path / "out/run").iterdir()) == names


@pytest.mark.parametrize(
    ("faults", "line", "code"),
    [
        (("mistake", "waits"), "rank 3 of 4: no such file: a.json. Look.", 3),
        (("killed", "waits"), "rank 3 of 4 was killed: SIGKILL", 3),
        (("", "mistake"), "no such file: a.json. Look.", 3),  # rank 2 is the second node's, too
    ],
)
def test_a_rank_of_another_node_that_fails_ends_all(
    start_two_nodes: Callable[..., tuple[Any, int]], tmp_path: Path, faults: tuple[str, str], line: str, code: int
) -> None:
    began = time.monotonic()
    said, ended = start_two_nodes(*faults)
    assert line in said and ended == code and left(tmp_path) == [] and time.monotonic() - began < 20


def test_nodes_without_a_folder_in_common(start: Callable[..., int], tmp_path: Path) -> None:
    """Each of them says so, and starts nothing."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)
    store.set("nest_ssl", json.dumps([str(tmp_path / "elsewhere"), 1, {}]))
    with pytest.raises(UserError, match="not a folder that all nodes share: .*elsewhere: node 1 has none. Start the"):
        start("", "", number=4, node=Node(1, 2, 2, "127.0.0.1", store))
    with pytest.raises(UserError, match="not a folder that all nodes share: .*: node 1 has none"):
        start("", "", number=4, node=Node(0, 2, 2, "127.0.0.1", store))
    assert left(tmp_path) == []


def test_nodes_with_other_settings(start: Callable[..., int], tmp_path: Path) -> None:
    """Each of them says which, and starts nothing."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)
    own = {"output_dir": str(tmp_path / "out" / "run"), "overwrite": True, "trainer": {"stall_timeout": 3}}
    for first, said in (
        ({**own, "trainer": {"stall_timeout": 4}}, "trainer.stall_timeout: 4 on the first node, 3 on node 1"),
        ({**own, "seed": 1}, "seed: 1 on the first node, not given on node 1"),
    ):
        store.set("nest_ssl", json.dumps([str(tmp_path), 1, first]))
        for number in (1, 0):
            with pytest.raises(UserError, match=f"the nodes have different settings: {said}. Start the same command"):
                start("", "", number=4, node=Node(number, 2, 2, "127.0.0.1", store))
    assert left(tmp_path) == []


def test_settings_of_nodes_are_shown_without_secrets(tmp_path: Path) -> None:
    """And what is not a number is the same on both."""
    first, own = ({"wandb": {"api_key": f"hidden {side}"}, "eps": float("nan")} for side in "ab")
    refused = Node(1, 2)._refused(tmp_path, first, own)
    assert refused == ("the nodes have different settings", "wandb.api_key: *** on the first node, *** on node 1")
    assert Node(1, 2)._refused(tmp_path, own, own) is None
    assert Node(1, 2)._refused(tmp_path, own, {**own, "eps": 1.0}) is not None


def test_a_node_that_does_not_come(start: Callable[..., int], tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 2)
    store.set_timeout(timedelta(seconds=0.1))
    for number, line in ((0, "node 1 is not there: 127.0.0.1, node 0"), (1, "the first node is not there")):
        with pytest.raises(UserError, match=line):
            start(
                "",
                "",
                number=4,
                node=Node(number, 2, 2, "127.0.0.1", torch.distributed.PrefixStore(str(number), store)),
            )
    assert left(tmp_path) == []


def test_an_earlier_recording_stays_when_a_rank_fails(start: Callable[..., int], tmp_path: Path) -> None:
    start("", "")
    before = (tmp_path / "out/run/ranks.json").read_text()
    with pytest.raises(UserError, match="rank 1"):
        start("killed", "")
    assert left(tmp_path) == ["run"] and (tmp_path / "out/run/ranks.json").read_text() == before


def test_a_signal_ends_all_ranks(start: Callable[..., int], tmp_path: Path) -> None:
    def stop() -> None:
        while not all((tmp_path / "out" / f"waits_{rank}").exists() for rank in (0, 1)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert start("waits", "waits") == 128 + signal.SIGTERM
    stopper.join()
    assert left(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_goes_wrong_in_a_rank_is_left_for_the_one_that_started_it(tmp_path: Path) -> None:
    rank = Rank(1, 2, tmp_path)

    def mistake() -> int:
        raise UserError("what", "where", "Fix.")

    assert (rank.reporting(lambda: 0), rank.reporting(mistake)) == (0, 3)
    assert json.loads((tmp_path / "failure_1.txt").read_text()) == {"error": ["what", "where", "Fix."]}
    assert rank.reporting(lambda: 1 // 0) == 70
    assert "ZeroDivisionError" in (tmp_path / "failure_1.txt").read_text()


def test_which_rank_this_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("NEST_SSL_RANKS", str(tmp_path))
    rank = own_rank()
    assert rank == Rank(1, 2, tmp_path)
    assert (rank.target, rank.place("a/b"), rank.log("a/b")) == (
        tmp_path / "rank_1", Path("a/b/rank_1"), Path("a/b.rank_1.log"),
    )  # fmt: skip
    assert of_torchrun(OmegaConf.create({"trainer": {"devices": 3}})) is None


NODES = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "trainer", "found"),
    [
        ({}, {"devices": 2}, None),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, {"devices": 1}, None),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, {"devices": 1}, Node(ranks=2)),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "no.such.name"}, {"devices": 2}, Node(ranks=2)),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            {"devices": 3},
            "torchrun started 2 processes: trainer.devices=3. Give trainer",
        ),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"},
            {"devices": 1},
            "numbers of processes: WORLD_SIZE=4, LOCAL_WORLD_SIZE=2 on node 0 of 1. Give all --nproc",
        ),
        ({"WORLD_SIZE": "2"}, {"devices": 1}, "another launcher than torchrun: WORLD_SIZE=2. Start one process: "),
        (NODES, {"devices": 2, "num_nodes": 3}, "torchrun started 2 nodes: trainer.num_nodes=3. Give 2, or leave it"),
        (NODES | {"MASTER_PORT": "x"}, {"devices": 2}, "not the number of a port: MASTER_PORT=x. Start torchrun with"),
        (NODES | {"MASTER_PORT": "65536"}, {"devices": 2}, "not the number of a port: MASTER_PORT=65536. Start"),
        (NODES | {"MASTER_PORT": "1"}, {"devices": 2}, "the first node cannot be reached: 127.0.0.1:1. Start torchrun"),
        (NODES | {"LOCAL_RANK": "1"}, {"devices": 1, "num_nodes": 2}, Node(1, 2, 2)),
    ],
)
def test_started_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], trainer: dict[str, int], found: Node | str | None
) -> None:
    monkeypatch.setattr(nodes, "MEET_S", 0.2)
    around = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (around | environment).items() if environment else ():
        monkeypatch.setenv(name, value)
    cfg = OmegaConf.create({"trainer": trainer})
    with pytest.raises(UserError, match=found) if isinstance(found, str) else nullcontext():
        assert of_torchrun(cfg) == found


def test_processes_of_several_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert processes(OmegaConf.create({"trainer": {"devices": 2, "num_nodes": 3}})) == 6
    for name, value in {"LOCAL_RANK": "1", "RANK": "3", "WORLD_SIZE": "4", "NEST_SSL_RANKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert own_rank() == Rank(3, 4, tmp_path)


@pytest.mark.parametrize(
    ("devices", "number"), [(1, 1), ("2", 2), ([0, 1], 2), ("0,1,", 2), (-1, 3), ("auto", 3), (None, 3)]
)
def test_how_many_processes(monkeypatch: pytest.MonkeyPatch, devices: object, number: int) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert processes(OmegaConf.create({"trainer": {"devices": devices}})) == number


@pytest.mark.parametrize("devices", [0, "two", -2])
def test_no_number_of_processes(devices: object) -> None:
    with pytest.raises(UserError, match="not a number of devices: trainer.devices="):
        processes(OmegaConf.create({"trainer": {"devices": devices}}))


@pytest.mark.parametrize(("batches", "refused"), [([3, 3], False), ([3, 2], True)])
def test_ranks_with_other_numbers_of_batches_do_not_start(
    monkeypatch: pytest.MonkeyPatch, batches: list[int], refused: bool
) -> None:
    """One that has more would wait without end for the others."""

    def gather(found: list[int], own: int) -> None:
        assert own == batches[0]
        found[:] = batches

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    trainer = SimpleNamespace(num_training_batches=batches[0], world_size=2)
    with pytest.raises(UserError, match="batches: rank 0: 3, rank 1: 2") if refused else nullcontext():
        Together().on_train_start(trainer, None)  # type: ignore[arg-type]


def test_a_recording_of_ranks_is_read_back(start: Callable[..., int], tmp_path: Path) -> None:
    start("", "")
    with pytest.raises(UserError, match="rank_0"):  # these ranks recorded nothing
        read_ranks(tmp_path / "out/run")
