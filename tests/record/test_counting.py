"""Numbers drawn are counted beside training, as they are counted at once."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

import nest_ssl
from nest_ssl.base.rng import State, read_states, words_between
from nest_ssl.record.observers import draws as draws_module
from nest_ssl.recording.reader import open_recording
from tests.record.loop import recorded_step

DRAWN = 30_000  # by the model and, twice as many, by its child


class Drawing(nn.Module):
    def __init__(self, count: int, *children: nn.Module) -> None:
        super().__init__()
        self.count, self.inner = count, nn.ModuleList(children)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for each in self.inner:
            x = each(x)
        return x * self.weight + torch.rand(self.count).sum()


def test_training_waits_for_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is made until the step is done, and none by the thread that trains; the recording has them all."""
    counted_in, is_done = set(), threading.Event()

    def counting(generator: str, before: State, after: State) -> int | None:
        counted_in.add(threading.current_thread())
        assert is_done.wait(60), "training has waited"
        return words_between(generator, before, after)

    monkeypatch.setattr(draws_module, "words_between", counting)
    model = Drawing(DRAWN, Drawing(2 * DRAWN))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with nest_ssl.recording(tmp_path / "run", model, record="boundaries") as session:
        torch.rand(7)
        session.batch(torch.ones(3))
        recorded_step(session, model, optimizer, torch.ones(3))
        is_done.set()
    assert counted_in
    assert threading.current_thread() not in counted_in
    ledger = open_recording(tmp_path / "run").step(0).rng().ledger or []
    found = [(entry.module, entry.phase, entry.draws) for entry in ledger]
    assert found == [(None, "fetch", 7), ("inner.0", "forward", 2 * DRAWN), ("", "forward", DRAWN)]


def test_threads_count_side_by_side() -> None:
    torch.manual_seed(3)
    states, counts = [read_states()["torch_cpu"]], [300_000, 200_000, 100_000]
    for count in counts:
        torch.rand(count)
        states.append(read_states()["torch_cpu"])
    with ThreadPoolExecutor(4) as pool:
        counted = [*pool.map(lambda pair: words_between("torch_cpu", *pair), [*itertools.pairwise(states)] * 8)]
    assert counted == counts * 8
