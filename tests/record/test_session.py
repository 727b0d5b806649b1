"""The public session in a plain loop: five lines, no Lightning, and not a bit of training changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.base.rng import rng_digests
from nest_ssl.record.loop import recording
from nest_ssl.record.session import Session
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.recording.writer import RecordingWriter
from tests.record.loop import recorded_step


class Net(nn.Module):
    """Dropout, batch norm, and an input edited in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x += 0.01 * torch.randn_like(x)
        return self.body(x)


def batches(count: int = 4) -> list[Tensor]:
    return [torch.arange(8.0).reshape(2, 4) + step for step in range(count)]


def prepare() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = Net()
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train_bare() -> Net:
    model, optimizer = prepare()
    for batch in batches():
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def train(
    out: Path,
    steps: Iterable[int] | None,
    each: Callable[[int, Net], None] = lambda step, model: None,
    **settings: object,
) -> Net:
    model, optimizer = prepare()
    with recording(out, model, steps=steps, output_names=("y",), **settings) as r:
        for step, batch in enumerate(batches()):
            r.batch(batch)
            each(step, model)
            recorded_step(r, model, optimizer, batch)
    return model


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    out = tmp_path_factory.mktemp("session") / "mine"
    train(out, [0, 2], seed=1)
    return open_recording(out)


@pytest.mark.parametrize("steps", [None, [1], []])
def test_recording_changes_no_bit_of_training(tmp_path: Path, steps: list[int] | None) -> None:
    bare, generators = train_bare().state_dict(), rng_digests()
    recorded = train(tmp_path / "run", steps).state_dict()
    assert all(torch.equal(bare[name], recorded[name]) for name in bare)
    assert rng_digests() == generators


def test_what_is_recorded(recorded: Recording) -> None:
    assert recorded.steps == [0, 2]
    assert recorded.index.trainer.name == "mine"
    assert recorded.index.trainer.model_class == f"{Net.__module__}.Net"
    assert recorded.index.seed == 1
    step = recorded.step(2)
    assert torch.equal(step.batch(), batches()[2]), "before the forward edits it"
    root = step.calls()[0]
    assert torch.equal(step.forward_output()["y"], root.output)
    assert torch.equal(step.loss()["loss"], root.output.square().mean())
    assert set(step.gradients()) == {name for name, _ in Net().named_parameters()}
    assert step.optimizer_state()["state"]["body.0.weight"]["step"] == 3, "three steps with this one"
    assert [entry.module for entry in step.rng().ledger or []] == ["", "body.3"]
    drawn_from = {entry.before for entry in step.rng().ledger or []}
    assert set(step.generator_states()["torch_cpu"]) == drawn_from | {(step.rng().fetch or {})["torch_cpu"]}


def test_the_recorded_weights_follow_from_gradient_and_state(recorded: Recording) -> None:
    parameter = nn.Parameter(recorded.initial_weights()["body.0.weight"].clone())
    parameter.grad = recorded.step(0).gradients()["body.0.weight"].clone()
    torch.optim.AdamW([parameter], lr=0.1).step()
    assert torch.equal(parameter.detach(), recorded.step(0).weights()["body.0.weight"])


def test_steps_that_are_not_recorded_carry_no_hook(tmp_path: Path) -> None:
    hooked = {}

    def look(step: int, model: Net) -> None:
        hooked[step] = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())

    model = train(tmp_path / "run", [1], look)
    assert hooked == {0: False, 1: True, 2: False, 3: False}
    look(4, model)
    assert hooked[4] is False


def test_an_error_leaves_nothing_half_written_and_an_earlier_recording_as_it_was(tmp_path: Path) -> None:
    train(tmp_path / "run", [0])
    before = (tmp_path / "run" / "recording.json").read_text()
    broken: list[Net] = []

    def crash(step: int, model: Net) -> None:
        if step == 1:
            broken.append(model)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        train(tmp_path / "run", None, crash, overwrite=True)
    assert os.listdir(tmp_path) == ["run"]
    assert (tmp_path / "run" / "recording.json").read_text() == before
    assert not any(m._forward_hooks or "forward" in vars(m) for m in broken[0].modules())


def test_a_step_that_is_never_reached_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save_steps names 4; 1 of the named"):
        train(tmp_path / "run", [0, 4])
    assert os.listdir(tmp_path) == []


def test_a_step_that_did_not_come_to_its_end_is_not_recorded(tmp_path: Path) -> None:
    model, optimizer = prepare()
    with recording(tmp_path / "run", model) as r:
        r.batch(batches()[0])
        r.step_done(optimizer)
        r.batch(batches()[1])  # the loop ends here
    assert open_recording(tmp_path / "run").steps == [0]
    assert not any(m._forward_hooks for m in model.modules())


def test_steps_may_be_skipped_by_number(tmp_path: Path) -> None:
    model, optimizer = prepare()
    with recording(tmp_path / "run", model, steps=[3]) as r:
        for number in (0, 3):
            r.batch(batches()[0], number=number, epoch=1, position=7)
            r.step_done(optimizer, stepped=False)
    step = open_recording(tmp_path / "run").index.steps[3]
    assert (step.epoch, step.batch, step.optimizer_stepped) == (1, 7, False)


def test_resuming_behind_a_step_to_record_is_refused(tmp_path: Path) -> None:
    with Session(RecordingWriter(tmp_path / "run"), [1]) as session, pytest.raises(UserError, match="goes on at 2"):
        session.begin(Net(), first_step=2)


def test_several_processes_in_one_place_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with (
        Session(RecordingWriter(tmp_path / "run")) as session,
        pytest.raises(UserError, match="one place: 2 processes"),
    ):
        session.begin(Net())
    assert os.listdir(tmp_path) == []


def test_an_optimizer_may_hold_what_is_not_the_models(tmp_path: Path) -> None:
    model, extra = Net(), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([*model.parameters(), extra], lr=0.1)
    with recording(tmp_path / "run", model) as r:
        r.batch(batches()[0])
        r.step_done(optimizer)
    (group,) = open_recording(tmp_path / "run").step(0).optimizer_state()["param_groups"]
    assert group["params"] == [*(name for name, _ in model.named_parameters()), "(group 0, parameter 6)"]


def test_sources_are_those_that_were_imported_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is edited while training runs is not what trained."""
    (tmp_path / "edited_net.py").write_text("from torch import nn\nclass Own(nn.Linear): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import edited_net

    with recording(tmp_path / "first", edited_net.Own(2, 2)) as r:
        r.batch(torch.ones(1))
        (tmp_path / "edited_net.py").write_text("raise SystemExit\n")
        r.step_done()
    with recording(tmp_path / "second", edited_net.Own(2, 2)):
        pass
    sources = [open_recording(tmp_path / name).index.sources["edited_net.Own"] for name in ("first", "second")]
    assert sources[0].file == "edited_net.py" and sources[0].sha256 != sources[1].sha256


def test_settings_may_be_a_mapping(tmp_path: Path) -> None:
    train(tmp_path / "run", [0], config={"seed": 1, "logger": {"api_key": "hunter2"}})
    assert open_recording(tmp_path / "run").config == {"seed": 1, "logger": {"api_key": "***"}}


def test_secrets_do_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py", "logger.api_key=hunter2"])
    monkeypatch.setenv("TORCH_HUB_TOKEN", "hunter2")
    monkeypatch.setenv("NEST_SSL_COMMAND", "make nest ARGS=wandb.password=hunter2")
    train(tmp_path / "run", [0], config="logger:\n  api_key: hunter2\nseed: 1\n")
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    recorded = open_recording(tmp_path / "run")
    assert recorded.config == {"logger": {"api_key": "***"}, "seed": 1}
    assert recorded.index.command == ["train.py", "logger.api_key=***"]
    assert recorded.index.make_command == "make nest ARGS=wandb.password=***"
