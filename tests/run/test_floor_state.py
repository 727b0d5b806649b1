"""What a repeated step starts from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from nest_ssl.run.floor.state import SavedState, copied, live_weights, write_weights


def test_a_buffer_that_the_first_forward_makes_stays_when_a_step_is_repeated() -> None:
    """As that of NeMo's convolutional encoders: what is put back was taken before it was there."""
    model = torch.nn.Linear(2, 2)
    saved = copied(live_weights(model))
    model.register_buffer("made", torch.arange(3), persistent=False)
    with torch.no_grad():
        model.weight += 1
        write_weights(model, saved)
    assert torch.equal(model.weight, saved["weight"]) and model.made.tolist() == [0, 1, 2]


class LongestInput(torch.nn.Module):
    """Extends its table for an input longer than any before, as the encoder does its table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.longest = 2
        self.register_buffer("table", torch.arange(2))

    def forward(self, length: int) -> None:
        if length > self.longest:
            self.longest, self.table = length, torch.arange(length)


def test_a_table_that_a_step_extends_is_extended_again_when_it_is_repeated() -> None:
    """The module knows in a plain number how long its table is, so the number goes back with the table."""
    model = LongestInput()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])
    trainer: Any = SimpleNamespace(optimizers=[optimizer], precision_plugin=torch.nn.Identity())
    start = SavedState.take(trainer, model, lasting=True)
    model(3)
    after = SavedState.take(trainer, model, lasting=False)
    start.put_back(trainer, model, again=True)
    assert (model.longest, model.table.tolist()) == (2, [0, 1])
    model(3)
    assert (model.longest, model.table.tolist()) == (3, [0, 1, 2])
    model(4)
    after.put_back(trainer, model, again=False)
    assert (model.longest, model.table.tolist()) == (3, [0, 1, 2])
