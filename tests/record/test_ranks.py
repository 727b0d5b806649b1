"""A loop of one's own in two processes: each records into its place, and the first completes the whole."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from nest_ssl.config.compose import ROOT
from nest_ssl.recording.ranks import read_ranks
from nest_ssl.recording.reader import open_recording

PROGRAM = """
import sys
import torch
import nest_ssl

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
torch.distributed.destroy_process_group()
"""


def test_two_processes_record_as_one(python: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, str(tmp_path / "program.py")]
    ranks = [subprocess.Popen([*command, rank, str(tmp_path / "run")], env=environment) for rank in "01"]
    try:
        assert [process.wait(120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
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
