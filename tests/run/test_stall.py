"""A planted stall: what the process that is stuck says of itself, and when."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from nest_ssl.run.stall import Stalls, stall_file

WAIT_S = 20.0  # that a test waits for what should come at once


class Sticky(nn.Linear):
    """Its call number `at` does not come back before `free` is set."""

    free, calls, at = threading.Event(), 0, 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.calls == self.at:
            self.free.wait(WAIT_S)
        self.calls += 1
        return super().forward(x)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), Sticky(2, 1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.body(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(torch.ones(3, 2)), batch_size=1)


def fit(stalls: Stalls) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[stalls], **quiet).fit(Net())


@pytest.fixture(autouse=True)
def _not_yet_free() -> None:
    Sticky.free.clear()


def test_a_stuck_step_is_said_with_its_module_and_stack(tmp_path: Path) -> None:
    said: list[str] = []

    def end(text: str) -> None:
        said.append(text)
        Sticky.free.set()

    fit(Stalls(1.0, 1, tmp_path, end))
    head, *stack = said[0].splitlines()
    assert head.startswith("rank 1: step 1, forward for ") and head.endswith(", last module body.1")
    assert "self.free.wait(WAIT_S)" in "".join(stack)
    assert stall_file(tmp_path, 1).read_text() == said[0]


def test_another_rank_that_is_stuck_is_answered(tmp_path: Path) -> None:
    stall_file(tmp_path, 0).write_text("rank 0")
    said: list[str] = []

    def end(text: str) -> None:
        said.append(text)
        Sticky.free.set()

    fit(Stalls(WAIT_S, 1, tmp_path, end))
    assert said and said[0].startswith("rank 1: step 1, forward")


def test_training_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    Sticky.free.set()
    before = threading.active_count()
    for seconds in (None, WAIT_S):
        fit(Stalls(seconds, 0, tmp_path, said.append))
    assert said == [] and list(tmp_path.iterdir()) == []
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert threading.active_count() <= before + 2  # they end within their pause
