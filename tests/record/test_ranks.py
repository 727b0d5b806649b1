"""A loop of one's own in two processes: each records into its place, and the first completes the whole.

Where one of them fails the others end, too, and say which it was; an earlier recording stays.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import ROOT
from nest_ssl.record.ranks import _Together
from nest_ssl.recording.ranks import read_ranks
from nest_ssl.recording.reader import open_recording

PROGRAM = """
import os, signal, sys
import torch
import nest_ssl, nest_ssl.base.errors

rank, out = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=2)
for overwrite in (False, True):
    torch.manual_seed(1)
    model = torch.nn.Linear(3, 1)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with nest_ssl.recording(out, model, overwrite=overwrite) as r:
        for number in range(2):
            batch = torch.full((2, 3), float(rank + number))
            r.batch(batch)
            loss = parallel(batch).square().mean()
            r.loss(loss)
            optimizer.zero_grad()
            loss.backward()
            r.backward_done()
            optimizer.step()
            r.step_done(optimizer)

def fail(what):
    # The other rank waits at the end of its recording: their steps have nothing in common.
    try:
        with nest_ssl.recording(out, model, overwrite=True) as r:
            r.batch(batch)
            if rank == 1:
                what()
            r.loss(model(batch).sum())
            r.step_done(optimizer)
    except Exception as error:
        print(f"{what.__name__}: {type(error).__name__}: {error}", flush=True)

def no_data():
    raise ValueError("no more data")

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

try:
    with nest_ssl.recording(out, model):
        pass
except nest_ssl.base.errors.UserError as error:
    print(error, flush=True)
fail(no_data)
ranks = sys.modules["nest_ssl.record.ranks"]
place, write = ranks.replace_folder, ranks.write_atomically

def full(*_):
    raise OSError(28, "No space left on device")

ranks.replace_folder = full
try:
    with nest_ssl.recording(out, model, overwrite=True) as r:
        r.batch(batch)
        r.loss(model(batch).sum())
        r.step_done(optimizer)
except Exception as error:
    print(f"not moved: {type(error).__name__}: {error}", flush=True)
ranks.replace_folder = place
ranks.write_atomically = full if rank == 1 else write
fail(no_data)
ranks.write_atomically = write
fail(killed)
os._exit(0)
"""


def test_two_processes_record_as_one(python: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, str(tmp_path / "program.py")]
    ranks = [
        subprocess.Popen([*command, rank, str(tmp_path / "run")], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=120)[0].splitlines() for process in ranks]
        assert [process.returncode for process in ranks] == [0, -signal.SIGKILL]
    finally:
        for process in ranks:
            process.kill()
    refused = f"an earlier recording is there: {tmp_path / 'run'}. "
    assert said[0][0].startswith(refused) and said[1][0].startswith(refused)
    assert said[0][1].startswith("no_data: UserError: rank 1 of 2 failed: ValueError: no more data.")
    assert all(each[2].startswith("not moved: UserError: ") and "Free some space" in each[2] for each in said), said
    assert said[0][3].startswith("no_data: UserError: rank 1 of 2 ended before it was done")
    assert [said[1][1], *said[1][3:]] == ["no_data: ValueError: no more data"] * 2
    assert said[0][4].startswith("killed: UserError: rank 1 of 2 ended before it was done")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py", "run", "run.meet"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["rank_0", "rank_1", "ranks.json"]
    one, other = (open_recording(path) for path in read_ranks(tmp_path / "run") or ())
    assert [(each.index.rank, each.index.world_size, each.steps) for each in (one, other)] == [
        (0, 2, [0, 1]), (1, 2, [0, 1]),
    ]  # fmt: skip
    for number in (0, 1):
        losses = [float(each.step(number).loss()["loss"]) for each in (one, other)]
        assert losses[0] != losses[1]
        for kind in ("gradients", "weights"):
            tables = [getattr(each.step(number), kind)() for each in (one, other)]
            assert tables[0] and all((tensor == tables[1][name]).all() for name, tensor in tables[0].items()), kind


def test_the_first_rank_is_killed_while_it_puts_the_whole_into_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(said: list[object]) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broken)
    with pytest.raises(UserError, match="rank 0 of 2 ended while it put the recording into its place"):
        _Together(tmp_path / "run", 1, 2).complete(tmp_path / "run")
