"""Gradients that three ranks add up have the same bits in the fused way and in the open one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nest_ssl.config.compose import ROOT
from nest_ssl.model.encoder.fused import choice

PROGRAM = """
import os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
from nest_ssl.model.encoder.fused import choice, subsampling
from tests.model.test_fused import encoder, look

out, ranks = sys.argv[1], int(sys.argv[2])
rank = 0
for number in range(1, ranks):
    if os.fork() == 0:
        rank = number
        break
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=ranks)
choice.SMALLEST = subsampling.FEWEST = 0
gradients = []
for watched in (True, False):
    module = encoder(d_model=64)
    if watched:
        for each in module.modules():
            each.register_forward_hook(look)
    parallel = DistributedDataParallel(module)
    torch.manual_seed(rank)
    for step in range(3):
        module.zero_grad()
        encoded, _ = parallel(audio_signal=torch.randn(2, 16, 90), length=torch.tensor([90, 61]))
        (encoded * torch.randn_like(encoded)).sum().backward()
    gradients.append([parameter.grad for parameter in module.parameters()])
torch.save(gradients, f"{out}.{rank}")
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_of_ranks_have_the_same_bits(ranks: int, tmp_path: Path) -> None:
    """Where a gradient lies among the others, and so in which order it is added, follows from the order of the first
    step's: in the fused way those of a branch come together."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), str(ranks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    opened, fused = torch.load(tmp_path / "out.0")
    assert len(opened) > 50 and all(torch.equal(one, other) for one, other in zip(opened, fused, strict=True))


@pytest.mark.parametrize(("ranks", "shared"), [(1, False), (2, False), (3, True)])
def test_two_ranks_may_take_the_fused_way(ranks: int, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum of two has no order."""
    assert not choice.shares_gradients()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    assert choice.shares_gradients() is shared
