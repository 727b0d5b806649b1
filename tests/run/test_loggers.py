"""Loggers by NeMo's keys: what is built, what is refused, and that training is none the wiser."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from train_nest import NEST

from nest_ssl.base.errors import UserError
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.experiment import run
from nest_ssl.run.loggers import build_loggers, closing


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network for anything, and none leaves W&B's settings to the next."""
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MODE": "offline", "ERROR_REPORTING": "false", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)


def kinds(section: Any, folder: Path) -> list[type]:
    loggers = build_loggers(section, folder)
    with closing(loggers):
        return [type(logger) for logger in loggers]


def test_what_is_built(tmp_path: Path) -> None:
    wandb_too = {"create_wandb_logger": True, "wandb_logger_kwargs": {"project": "p", "name": None}}
    assert kinds(None, tmp_path / "a") == kinds({}, tmp_path / "a") == []
    assert kinds({"exp_dir": None}, tmp_path / "a") == [TensorBoardLogger], "NeMo's default"
    assert kinds({"create_tensorboard_logger": False}, tmp_path / "b") == []
    assert not (tmp_path / "b").exists()
    assert kinds(OmegaConf.create(wandb_too), tmp_path / "c") == [TensorBoardLogger, WandbLogger]
    assert list((tmp_path / "c").glob("events.out.tfevents.*"))
    assert list((tmp_path / "c" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"summary_writer_kwargs": {"log_dir": "x"}}, "made elsewhere: .*summary_writer_kwargs.log_dir"),
        ({"summary_writer_kwargs": {"flush_sex": 1}}, "a TensorBoard setting is wrong: .*flush_sex"),
        ({"create_wandb_logger": True}, "needs a project or a name"),
        ({"create_wandb_logger": True, "wandb_logger_kwargs": {"project": "p", "colour": 1}}, "W&B setting.*colour"),
        ({"create_wandb_logger": True, "wandb_logger_kwargs": {"project": "p", "offline": True, "log_model": True}},
         "W&B setting is wrong.*log_model"),
    ],
)  # fmt: skip
def test_what_is_refused(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build_loggers(section, tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("section", [{"name": "x"}, {"create_tensorboard_logger": False, "create_wandb_logger": True,
                                                     "wandb_logger_kwargs": {"project": "p"}}])  # fmt: skip
def test_a_place_that_cannot_be_written(section: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        build_loggers(section, tmp_path / "file" / "logs")


def test_wandb_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(UserError, match="Weights & Biases is not installed: .*pip install wandb"):
        build_loggers({"create_wandb_logger": True, "wandb_logger_kwargs": {"project": "p"}}, tmp_path)


def test_wandb_is_as_its_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings))
    section = {"create_tensorboard_logger": False, "create_wandb_logger": True}
    monkeypatch.setenv("WANDB_PROJECT", "from the environment")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    build_loggers(section, tmp_path)
    assert asked[0]["project"] == "from the environment" and asked[0]["dir"] == str(tmp_path)
    assert os.environ["WANDB_MODE"] == "disabled", "W&B reads the variable itself, and nobody writes it"


def test_wandb_that_cannot_log_in_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(wandb, "init", refuse)
    section = {"create_wandb_logger": True, "wandb_logger_kwargs": {"project": "p"}}
    with pytest.raises(
        UserError, match="W&B cannot start a run: .*No API key.* kept on the disk: WANDB_MODE=offline"
    ) as raised:
        build_loggers(section, tmp_path)
    line = str(raised.value)
    assert "\n" not in line and line.lower().count("log in") == 1 and ".." not in line, line


def test_a_run_that_failed_is_said_to_have(tmp_path: Path) -> None:
    ended: list[int] = []

    class Run:
        def finish(self, exit_code: int) -> None:
            ended.append(exit_code)

    loggers = [WandbLogger(experiment=Run())]
    with closing(loggers):
        pass
    with pytest.raises(ZeroDivisionError), closing(loggers):
        raise ZeroDivisionError
    assert ended == [0, 1]


def test_two_places_ask_for_loggers(tmp_path: Path) -> None:
    logs = f"exp_manager={{explicit_log_dir: {tmp_path / 'logs'}}}"
    with pytest.raises(UserError, match="two places ask for loggers"):
        run(NEST, ["size=tiny", "trainer.logger=true", logs, f"output_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_logging_changes_no_bit_of_training(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    everything = (f"exp_manager.explicit_log_dir={logs}", "exp_manager.create_checkpoint_callback=false",
                  "exp_manager.create_wandb_logger=true", "exp_manager.wandb_logger_kwargs={project: p, name: n}",
                  "trainer.log_every_n_steps=1")  # fmt: skip
    recordings = []
    for name, options in (("bare", ()), ("logged", everything)):
        common = ["size=tiny", "run=full", "batches=4", "save_steps=3", "trainer.val_check_interval=2",
                  "model.train_ds.batch_size=2", "model.train_ds.num_workers=0", "model.train_ds.pin_memory=false",
                  "model.validation_ds.num_workers=0", "model.validation_ds.pin_memory=false"]  # fmt: skip
        assert run(NEST, [*common, *options, f"output_dir={tmp_path / name}"]) == 0
        recordings.append(open_recording(tmp_path / name))
    bare, logged = (recording.step(3).weights() for recording in recordings)
    assert bare.keys() == logged.keys() and all(torch.equal(bare[name], logged[name]) for name in bare)
    assert recordings[0].index.rng == recordings[1].index.rng
    events = EventAccumulator(str(logs))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [0, 1, 2, 3]
    assert list((logs / "wandb").glob("offline-run-*/*.wandb"))
