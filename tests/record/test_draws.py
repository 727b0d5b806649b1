"""Draws are counted exactly and charged to whoever drew; states are only read, and not on unrecorded steps."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from nest_ssl.base import rng
from nest_ssl.base.rng import digest, read_states, rng_digests, words_between
from nest_ssl.record.lightning import Recorder
from nest_ssl.record.observers import draws as draws_module
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.draws import DrawObserver
from nest_ssl.recording.calls import Call
from nest_ssl.recording.index import DrawEntry
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.recording.writer import RecordingWriter


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def drawn(draw: Callable[[], Any]) -> dict[str, int | None]:
    """What `draw` draws, by generator."""
    draws = DrawObserver("here")
    draw()
    draws.enter("there")
    assert {entry.phase for entry in draws.entries} <= {"here"}
    return {entry.generator: entry.draws for entry in draws.entries}


def stepped(generator: str, before: Any, after: Any) -> int:
    """The same count, one word at a time, by the library's own generator."""
    if generator == "python":
        one = random.Random()
        one.setstate(before)
        step, state = lambda: one.getrandbits(32), one.getstate
    elif generator == "numpy":
        legacy = np.random.RandomState()
        legacy.set_state((before[0], np.frombuffer(before[1], np.uint32), *before[2:]))
        step, state = lambda: legacy.randint(0, 2**32, dtype=np.uint32), lambda: legacy.get_state(legacy=True)
    else:
        torch_one = torch.Generator()
        torch_one.set_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))
        step = lambda: torch.rand(1, generator=torch_one)  # noqa: E731
        state = lambda: torch_one.get_state().numpy().tobytes()  # noqa: E731

    def words(value: Any) -> Any:
        return rng._twister(generator, (value[0], value[1].tobytes(), *value[2:]) if generator == "numpy" else value)

    wanted = rng._twister(generator, after)
    for count in range(100_000):
        if words(state()) == wanted:
            return count
        step()
    raise AssertionError("never reached")


KNOWN: list[tuple[str, Callable[[], Any], int]] = [
    ("python", random.random, 2),
    ("python", lambda: random.choices(range(48_000), k=24_000), 48_000),
    ("python", lambda: random.getrandbits(32), 1),
    ("python", lambda: random.uniform(0, 1), 2),
    ("numpy", lambda: np.random.randint(0, 256), 1),
    ("numpy", lambda: np.random.randint(0, 256, size=1000), 1000),
    ("numpy", np.random.uniform, 2),
    ("numpy", lambda: np.random.uniform(size=(7, 5)), 70),
    ("torch_cpu", lambda: torch.rand(1), 1),
    ("torch_cpu", lambda: torch.rand(4, 19), 76),
    ("torch_cpu", lambda: torch.rand(3, dtype=torch.float64), 6),
    ("torch_cpu", lambda: torch.randn(96_000), 96_000),
    ("torch_cpu", lambda: torch.randn(20), 36),  # 20 uniform numbers, and the last 16 drawn again
    ("torch_cpu", lambda: torch.empty((), dtype=torch.int64).random_(), 2),  # a loader's base seed
]
ANY: list[tuple[str, Callable[[], Any]]] = [  # how many is the library's own affair: rejected numbers, processors
    ("python", lambda: random.randint(1, 1)),
    ("python", lambda: random.randint(0, 99)),
    ("python", lambda: [random.gauss(0, 1) for _ in range(3)]),
    ("python", lambda: random.sample(range(1000), 20)),
    ("numpy", lambda: np.random.randint(0, 100, size=50)),
    ("numpy", np.random.randn),
    ("numpy", lambda: np.random.binomial(100, 0.3, size=10)),
    ("torch_cpu", lambda: torch.randn(3)),
    ("torch_cpu", lambda: torch.rand(30, 30).bernoulli_(0.3)),
    ("torch_cpu", lambda: torch.randperm(1000)),
    ("torch_cpu", lambda: nn.functional.dropout(torch.ones(30, 30), 0.1)),
]


@pytest.mark.parametrize(("generator", "draw", "count"), KNOWN)
@pytest.mark.parametrize("before", [0, 1, 623, 624, 625])
def test_known_numbers_of_draws(generator: str, draw: Callable[[], Any], count: int, before: int) -> None:
    """Wherever in a block of 624 words the generator stands."""
    _ = [random.getrandbits(32) for _ in range(before)]
    np.random.randint(0, 256, size=before)
    torch.rand(before)
    assert drawn(draw) == {generator: count}


@pytest.mark.parametrize(("generator", "draw"), ANY)
@pytest.mark.parametrize("before", [0, 620])
def test_as_many_as_stepping_word_by_word(generator: str, draw: Callable[[], Any], before: int) -> None:
    _ = [random.getrandbits(32) for _ in range(before)]
    np.random.randint(0, 256, size=before)
    torch.rand(before)
    start = read_states()
    counted = drawn(draw)
    assert counted == {generator: stepped(generator, start[generator], read_states()[generator])}


@pytest.mark.parametrize(
    ("generator", "draw"),
    [("python", lambda: random.gauss(0, 1)), ("numpy", np.random.randn), ("torch_cpu", lambda: torch.randn(()))],
)
def test_a_kept_normal_number_is_no_draw_but_another_state(generator: str, draw: Callable[[], Any]) -> None:
    first, second = drawn(draw)[generator], drawn(draw)
    assert first is not None
    assert first > 0
    assert second == {generator: 0}


def test_nothing_drawn_is_no_entry() -> None:
    assert drawn(lambda: (torch.ones(3), np.ones(3))) == {}


@pytest.mark.parametrize("seed", [random.seed, np.random.seed, torch.manual_seed])
def test_a_generator_seeded_anew_has_no_count(seed: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rng, "MOST", 1 << 20)
    assert list(drawn(lambda: seed(4)).values()) == [None]


def test_counting_gives_up_at_some_point(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drawn(lambda: torch.rand(200_000)) == {"torch_cpu": 200_000}
    monkeypatch.setattr(rng, "MOST", 100_000)
    assert drawn(lambda: torch.rand(200_000)) == {"torch_cpu": None}


def test_a_rewound_generator_has_no_count() -> None:
    state = torch.get_rng_state()
    torch.rand(3)
    assert drawn(lambda: torch.set_rng_state(state)) == {"torch_cpu": None}


def test_a_gpus_offset_says_it_outright() -> None:
    start = struct.pack("qq", 42, 8)
    assert words_between("torch_cuda_0", start, struct.pack("qq", 42, 20)) == 12
    assert words_between("torch_cuda_0", start, struct.pack("qq", 43, 20)) is None
    assert words_between("torch_cuda_1", start, struct.pack("qq", 42, 4)) is None


def test_reading_draws_nothing() -> None:
    before = rng_digests()
    DrawObserver("x").enter("y")
    assert rng_digests() == before


# --- who drew


class Drawing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(3)


class Nested(nn.Module):
    """Draws before, in, between and after its children; one child is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.silent = Drawing(), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.child(x + torch.rand(1))
        x = self.silent(x) + torch.rand(2).sum()
        return self.child(x) + torch.rand(4).sum()


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nested = Nested()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nested(x) + random.random()


def watched() -> tuple[DrawObserver, list[Call]]:
    root, draws = Root(), DrawObserver("fetch")
    np.random.uniform()
    draws.enter("training_step")
    observer = CallObserver(root, draws).attach()
    torch.rand(5)
    root.forward(torch.ones(3))
    torch.rand(6)
    draws.enter("backward")
    return draws, observer.detach()


def who(entry: DrawEntry) -> str:
    return entry.phase if entry.module is None else f"{entry.module}#{entry.call}"


def test_the_innermost_open_call_is_charged() -> None:
    draws, _ = watched()
    assert [(who(entry), entry.generator, entry.draws) for entry in draws.entries] == [
        ("fetch", "numpy", 2),
        ("training_step", "torch_cpu", 5),
        ("nested#0", "torch_cpu", 1),
        ("nested.child#0", "torch_cpu", 3),
        ("nested#0", "torch_cpu", 2),
        ("nested.child#1", "torch_cpu", 3),
        ("nested#0", "torch_cpu", 4),
        ("#0", "python", 2),
        ("loss", "torch_cpu", 6),
    ]
    assert {entry.phase for entry in draws.entries if entry.module is not None} == {"forward"}


def test_entries_point_into_the_list_of_calls() -> None:
    draws, calls = watched()
    for entry in draws.entries:
        if entry.index is not None:
            assert who(entry) == calls[entry.index].name
    # 0 root starts, 1 nested starts, 2 child starts, 3 ends, 4 silent starts, 5 ends, 6 child starts, 7 ends, ...
    assert [entry.event for entry in draws.entries] == [0, 0, 2, 3, 6, 7, 8, 9, 10]
    assert (calls[2].name, calls[2].start, calls[2].end) == ("nested.child#0", 2, 3), "the same numbers as the calls'"


def test_states_form_a_chain() -> None:
    draws, _ = watched()
    chain = [entry for entry in draws.entries if entry.generator == "torch_cpu"]
    assert all(a.after == b.before for a, b in itertools.pairwise(chain))
    assert chain[-1].after == rng_digests()["torch_cpu"] == digest("torch_cpu", read_states()["torch_cpu"])


def test_the_whole_state_from_which_a_call_drew_is_kept() -> None:
    """Put back, it gives the call's numbers again, whatever was drawn since."""
    draws, calls = watched()
    child = next(entry for entry in draws.entries if entry.module == "nested.child" and entry.call == 1)
    torch.set_rng_state(draws.states["torch_cpu"][child.before])
    x = calls[child.index or 0].args[0]
    assert torch.equal(x + torch.rand(3), calls[child.index or 0].output)
    kept = {(generator, state) for generator, states in draws.states.items() for state in states}
    assert kept == {(entry.generator, entry.before) for entry in draws.entries if entry.module is not None}


def test_a_call_that_raised_is_not_charged_for_the_rest() -> None:
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no")

    class Caught(Root):
        def __init__(self) -> None:
            super().__init__()
            self.failing = Failing()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with contextlib.suppress(ValueError):
                self.failing(x)
            return x + torch.rand(1)

    caught = Caught()
    draws = DrawObserver("training_step")
    CallObserver(caught, draws).attach()
    caught.forward(torch.ones(3))
    torch.rand(2)
    draws.enter("backward")
    assert [(who(entry), entry.draws) for entry in draws.entries] == [("#0", 1), ("loss", 2)]


# --- in a Trainer


TRAINER = {"name": "net", "package": "net", "version": "1"}


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 1), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear(x))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.forward(batch).square().mean() + 0 * torch.rand(7).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        torch.rand(11)

    def on_after_backward(self) -> None:
        torch.rand(2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(torch.arange(16.0).reshape(4, 4)), batch_size=2, shuffle=True, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(list(torch.arange(8.0).reshape(2, 4)), batch_size=2)

    @staticmethod
    def _collate(items: list[torch.Tensor]) -> torch.Tensor:
        random.random()
        return torch.stack(items)


def train(target: Path, steps: frozenset[int] | None, epochs: int = 2) -> Recording:
    recorder = Recorder(RecordingWriter(target), steps, ("y",))
    recorder.mark_rng("before_model")
    net = Net()
    recorder.mark_rng("after_model")
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[recorder])  # fmt: skip
    trainer.fit(net)
    recorder.finish(trainer=TRAINER)
    return open_recording(target)


def ledger_of(recording: Recording, step: int) -> list[DrawEntry]:
    ledger = recording.step(step).rng().ledger
    assert ledger is not None
    return ledger


def test_the_phases_of_training(tmp_path: Path) -> None:
    recording = train(tmp_path / "run", None)
    before = recording.index.ledger or []
    assert [(entry.phase, entry.draws) for entry in before] == [("model_construction", 5), ("fit_start", 2)]
    first, last = ledger_of(recording, 0), ledger_of(recording, 2)
    fetched = [("fetch", "python"), ("fetch", "torch_cpu")]
    rest = [("dropout#0", "torch_cpu"), ("loss", "torch_cpu"), ("optimizer_step", "torch_cpu")]
    assert [(who(entry), entry.generator) for entry in first] == [*fetched, *rest]
    assert [entry.draws for entry in first if who(entry) in ("fetch", "loss")] == [2, 2, 7]
    # A new epoch: the validation's loader and its step, then the next epoch's base seed and order.
    validated = [("validation", "torch_cpu"), ("validation", "torch_cpu")]
    assert [(who(entry), entry.generator) for entry in last] == [*validated, *fetched, *rest]
    assert [entry.draws for entry in last][:4] == [2, 11, 2, 4]
    assert recording.step(0).rng().loader_workers == 0


def test_the_ledger_joins_the_boundaries(tmp_path: Path) -> None:
    recording = train(tmp_path / "run", None)
    for step in recording.steps:
        states = recording.step(step).rng().states
        chain = [entry for entry in ledger_of(recording, step) if entry.generator == "torch_cpu"]
        after = {who(entry): entry.after for entry in chain}
        assert states["forward_done"]["torch_cpu"] == after["loss"]
        assert states["step_done"]["torch_cpu"] == after["optimizer_step"]
        if step:
            assert chain[0].before == recording.step(step - 1).rng().states["step_done"]["torch_cpu"]


def test_unrecorded_steps_are_not_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for steps in (frozenset({3}), frozenset[int]()):
        reads = []

        def counting(reads: list[int] = reads) -> dict[str, Any]:
            reads.append(1)
            return read_states()

        monkeypatch.setattr(draws_module, "read_states", counting)
        train(tmp_path / str(len(steps)), steps)
        counts.append(len(reads))
    assert counts[1] == 4, "only before the steps: building the model, and the start of fit"
    calls = 3  # the model, linear, dropout
    assert counts[0] == counts[1] + 1 + 2 * calls + 4 + 1, "from the batch before; six calls; boundaries; the loss"


def test_a_recording_draws_as_a_bare_run_does(tmp_path: Path) -> None:
    train(tmp_path / "none", frozenset())
    bare = rng_digests()
    _reseed()
    train(tmp_path / "all", None)
    assert rng_digests() == bare


def _reseed() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
