"""The recorder inside a real Lightning Trainer: what it writes, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from nest_ssl.base.errors import UserError
from nest_ssl.record.lightning import Recorder
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.recording.writer import RecordingWriter

EXPECTED_FILES = {
    "batch.pt", "forward_output.pt", "loss.pt", "parameter_gradients.pt", "parameter_weights.pt", "layer_outputs.pkl",
    "optimizer_state.pt", "rng.json", "generator_states.pt", "step_start.pt", "optimizer_start.pt",
    "applied_gradients.pt", "facts.json",
}  # fmt: skip


TRAINER = {"name": "net", "package": "net", "version": "1"}


class Net(LightningModule):
    """Dropout, batch norm and an input edited in place: all that a recorder could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x += 0.01 * torch.randn_like(x)  # as dither does
        return self.body(x), x

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.forward(batch)[0].square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.forward(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(torch.arange(40.0).reshape(10, 4)), batch_size=2)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(list(torch.arange(8.0).reshape(2, 4)), batch_size=2)


def train(target: Path | None, steps: frozenset[int] | None, batches: int = 3, **settings: object) -> Net:
    torch.manual_seed(1)
    net = Net()
    recorder = Recorder(RecordingWriter(target, overwrite=True), steps, ("y", "x")) if target else None
    trainer = Trainer(max_epochs=1, limit_train_batches=batches,
                      accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[recorder] if recorder else [],
                      **settings)  # fmt: skip
    trainer.fit(net)
    if recorder:
        recorder.finish(trainer=TRAINER, seed=1)
    return net


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    target = tmp_path_factory.mktemp("callback") / "run"
    train(target, frozenset({0, 2}))
    return open_recording(target)


def test_the_file_contract(recording: Recording) -> None:
    assert recording.steps == [0, 2]
    for step in recording.steps:
        assert {path.name for path in (recording.path / f"step_{step}").iterdir()} == EXPECTED_FILES
    assert not (recording.path / "step_1").exists()
    assert set(recording.index.files) == {
        str(path.relative_to(recording.path).as_posix())
        for path in recording.path.rglob("*")
        if path.is_file() and path.name != "recording.json"
    }


def test_recording_changes_no_weight(tmp_path: Path) -> None:
    bare, some, every = train(None, None), train(tmp_path / "a", frozenset({1})), train(tmp_path / "b", None)
    for name, value in bare.state_dict().items():
        assert torch.equal(value, some.state_dict()[name]) and torch.equal(value, every.state_dict()[name]), name


def test_the_batch_is_kept_as_it_was_before_the_edit(recording: Recording) -> None:
    batch = recording.step(0).batch()
    assert torch.equal(batch, torch.arange(8.0).reshape(2, 4))
    assert not torch.equal(batch, recording.step(0).forward_output()["x"])


def test_weights_follow_from_gradients_and_state(recording: Recording) -> None:
    """The recorded step can be replayed: AdamW's first step from the recorded gradient gives the recorded weight."""
    before, after = recording.initial_weights(), recording.step(0).weights()
    parameter = nn.Parameter(before["body.0.weight"].clone())
    parameter.grad = recording.step(0).gradients()["body.0.weight"].clone()
    torch.optim.AdamW([parameter], lr=0.1).step()
    assert torch.equal(parameter.detach(), after["body.0.weight"])
    assert recording.step(0).optimizer_state()["state"]["body.0.weight"]["step"] == 1


def test_gradients_are_those_before_clipping(tmp_path: Path) -> None:
    train(tmp_path / "clipped", frozenset({0}), gradient_clip_val=1e-6)
    train(tmp_path / "free", frozenset({0}))
    clipped, free = (open_recording(tmp_path / name).step(0).gradients() for name in ("clipped", "free"))
    assert all(torch.equal(clipped[name], free[name]) for name in free)


def test_accumulated_batches_are_steps_of_their_own(tmp_path: Path) -> None:
    train(tmp_path / "run", None, batches=4, accumulate_grad_batches=2)
    steps = open_recording(tmp_path / "run").index.steps
    assert [steps[n].optimizer_stepped for n in range(4)] == [False, True, False, True]


def test_random_streams_are_noted_at_every_boundary(recording: Recording) -> None:
    states = recording.step(0).rng().states
    assert list(states) == ["batch_ready", "forward_done", "backward_done", "step_done"]
    assert states["batch_ready"]["torch_cpu"] != states["forward_done"]["torch_cpu"], "dither and dropout draw"
    assert states["forward_done"] == states["step_done"]


def test_validation_is_not_recorded(recording: Recording) -> None:
    assert all(call.training for step in recording.steps for call in recording.step(step).calls())


def test_a_step_that_training_never_reaches_is_refused_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save_steps names 5"):
        train(tmp_path / "run", frozenset({0, 5}))
    assert not list(tmp_path.iterdir())


def test_steps_count_on_over_epochs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    recorder = Recorder(RecordingWriter(tmp_path / "run"), frozenset({2, 3}), ("y", "x"))
    trainer = Trainer(max_epochs=2, limit_train_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[recorder])  # fmt: skip
    trainer.fit(Net())
    recorder.finish(trainer=TRAINER)
    steps = open_recording(tmp_path / "run").index.steps
    assert {n: (s.epoch, s.batch) for n, s in steps.items()} == {2: (1, 0), 3: (1, 1)}


def test_a_crash_leaves_the_earlier_recording(tmp_path: Path) -> None:
    train(tmp_path / "run", frozenset({0}))
    before = (tmp_path / "run" / "recording.json").read_text()
    original = Net.training_step

    def crash(self: Net, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        raise RuntimeError("out of memory")

    Net.training_step = crash
    try:
        with pytest.raises(RuntimeError, match="out of memory"):
            train(tmp_path / "run", frozenset({0}))
    finally:
        Net.training_step = original
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "recording.json").read_text() == before


@pytest.mark.parametrize("steps", [frozenset({0}), frozenset[int]()])
def test_several_processes_in_one_place_are_refused_before_anything_is_trained(
    tmp_path: Path, steps: frozenset[int]
) -> None:
    recorder = Recorder(RecordingWriter(tmp_path / "run"), steps, ("y",))
    two = SimpleNamespace(world_size=2)
    with recorder.session, pytest.raises(UserError, match=r"several processes.*2 processes.*RANKS=N"):
        recorder.setup(two, Net(), "fit")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_two_backward_passes_in_one_step_record_the_first(tmp_path: Path) -> None:
    """As a GAN's manual optimization has them."""

    class Twice(Net):
        automatic_optimization = False

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            optimizer = self.optimizers()
            for factor in (1.0, 3.0):
                optimizer.zero_grad()
                self.manual_backward(factor * self.forward(batch)[0].square().mean())
                optimizer.step()

    recorder = Recorder(RecordingWriter(tmp_path / "run"), None, ("y",))
    trainer = Trainer(max_epochs=1, limit_train_batches=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[recorder])  # fmt: skip
    trainer.fit(Twice())
    recorder.finish(trainer=TRAINER)
    step = open_recording(tmp_path / "run").step(0)
    assert [call.name for call in step.calls() if call.module == ""] == ["#0"]
    assert [call.name for call in step.later_calls() if call.module == ""] == ["#0"]


def test_nothing_trained_is_one_line(tmp_path: Path) -> None:
    recorder = Recorder(RecordingWriter(tmp_path / "run"), None, ("y",))
    with pytest.raises(UserError, match="nothing was trained"):
        recorder.finish(trainer=TRAINER)
    assert not list(tmp_path.iterdir())
