"""NeMo's `exp_manager` section: where things go, what resuming takes and refuses, and which keys are errors."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.run.exp_manager import LOCK, Experiment, open_experiment
from nest_ssl.run.preflight import Length
from tests.train.checkpoint.test_checkpoint_io import cut, save

LENGTH = Length(epoch=5, batches=100, steps=100)


def opened(section: dict[str, Any] | None, **cfg: Any) -> Experiment:
    with open_experiment(OmegaConf.create({"model": {}, **cfg, "exp_manager": section}), LENGTH) as experiment:
        return experiment


def checkpoints(section: dict[str, Any]) -> Any:
    return opened(section).callbacks[1]


def test_nothing_without_a_folder() -> None:
    assert opened(None) == Experiment() == opened({})
    named = opened({"exp_dir": None, "create_tensorboard_logger": True, "resume_if_exists": True})
    assert named.log_dir is None and named.callbacks == [] and named.trainer_settings == {}
    assert named.notes == ["exp_manager is not used: exp_manager.exp_dir names no folder"]


@pytest.mark.parametrize(
    ("section", "folder"),
    [
        ({"resume_if_exists": True, "resume_ignore_no_checkpoint": True}, "default"),
        ({"name": "x", "version": "b"}, "x/b"),
        ({"name": "x", "use_datetime_version": False}, "x/version_4"),
        ({"name": "y", "use_datetime_version": False}, "y/version_0"),
        ({"name": "x"}, "x/20??-??-??_??-??-??"),
    ],
)
def test_folders_are_nemos(tmp_path: Path, section: dict[str, Any], folder: str) -> None:
    (tmp_path / "x" / "version_3").mkdir(parents=True)
    log_dir = opened({"exp_dir": str(tmp_path), **section}).log_dir
    assert log_dir is not None and log_dir.relative_to(tmp_path).match(folder)


def test_files_are_named_as_nemos(tmp_path: Path) -> None:
    callback = checkpoints({"explicit_log_dir": str(tmp_path), "name": "x"})
    assert (callback.dirpath, callback.filename) == (str(tmp_path / "checkpoints"), "x--{val_loss:.4f}-{epoch}")
    assert callback.CHECKPOINT_NAME_LAST == "x--{val_loss:.4f}-{epoch}-last"
    assert (callback.save_top_k, callback.save_last, callback.mode, callback.every_n_epochs) == (3, True, "min", 1)


def test_checkpoint_settings_reach_lightning(tmp_path: Path) -> None:
    given = {"dirpath": str(tmp_path / "d"), "filename": "f", "monitor": None, "save_top_k": -1, "save_last": False}
    callback = checkpoints(
        {"exp_dir": str(tmp_path), "checkpoint_callback_params": {**given, "every_n_train_steps": 5}}
    )
    assert (callback.dirpath, callback.filename, callback.save_top_k) == (str(tmp_path / "d"), "f", -1)
    assert (callback._every_n_train_steps, callback.every_n_epochs) == (5, 0)
    timed = {"train_time_interval": "00:01:00:30"}
    callback = checkpoints({"exp_dir": str(tmp_path), "checkpoint_callback_params": timed, "max_time_per_run": 90})
    assert callback._train_time_interval == timedelta(hours=1, seconds=30) and callback._max_time == 90
    without = opened({"exp_dir": str(tmp_path), "create_checkpoint_callback": False})
    assert len(without.callbacks) == 1 and not without.trainer_settings["enable_checkpointing"]


def resume(tmp_path: Path, **section: Any) -> Experiment:
    return opened({"exp_dir": str(tmp_path), "name": "x", "resume_if_exists": True, **section})


def test_resuming_takes_the_last_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "checkpoints"
    save(folder / "a-last.ckpt", 2)
    save(folder / "b-last.ckpt", 6)
    found = resume(tmp_path)
    assert found.resumed.path == folder / "b-last.ckpt" and "6 batches and 3 steps" in found.notes[0]
    assert found.describe()["resumed_from"]["batches"] == 6
    cut(folder / "b-last.ckpt")
    found = resume(tmp_path)
    assert found.resumed.path == folder / "a-last.ckpt" and "b-last.ckpt" in found.notes[0]
    assert opened({"exp_dir": str(tmp_path), "name": "x"}).resumed is None, "unless it is asked for"


def test_resuming_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        resume(tmp_path)
    anew = resume(tmp_path, resume_ignore_no_checkpoint=True)
    assert anew.resumed is None and "from scratch" in anew.notes[0]
    other = save(tmp_path / "other.ckpt", 4)
    given = resume(tmp_path, resume_ignore_no_checkpoint=True, resume_from_checkpoint=str(other))
    assert given.resumed.path == other
    assert opened({"exp_dir": str(tmp_path), "resume_from_checkpoint": str(other)}).resumed.path == other


def test_a_checkpoint_without_random_states_is_said_to_begin_them_anew(tmp_path: Path) -> None:
    path = tmp_path / "x" / "checkpoints" / "a-last.ckpt"
    save(path)
    torch.save({key: value for key, value in torch.load(path).items() if key != "nest_ssl"}, path)
    assert "start again" in resume(tmp_path).notes[1]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"checkpoint_callback_params": {"filename": "{val_loss:d}"}}, "a file name that cannot be made"),
        ({"checkpoint_callback_params": {"filename": "{epoch:.2q}"}}, "a file name that cannot be made"),
        ({"checkpoint_callback_params": {"filename": "{epoch"}}, "a file name that cannot be made"),
        ({"checkpoint_callback_params": {"filename": "a/{epoch}"}}, "a file name that names a folder"),
        ({"checkpoint_callback_params": {"filename": 3}}, "checkpoint_callback_params.filename"),
        ({"resume_if_exist": True}, "Did you mean exp_manager.resume_if_exists"),
        ({"checkpoint_callback_params": {"save_topk": 1}}, "exp_manager.checkpoint_callback_params.save_top_k"),
        ({"create_early_stopping_callback": True}, "not supported: true: exp_manager.create_early_stopping_callback"),
        ({"create_mlflow_logger": True}, "not supported: true: exp_manager.create_mlflow_logger"),
        ({"ema": {"enable": True}}, "not supported: true: exp_manager.ema.enable"),
        ({"checkpoint_callback_params": {"async_save": True}}, "not supported: true: .*async_save"),
        ({"checkpoint_callback_params": {"mode": "least"}}, "not supported: least: .*mode. Supported: min, max"),
        ({"checkpoint_callback_params": {"every_n_train_steps": 2, "every_n_epochs": 1}}, "mutually exclusive"),
        ({"max_time_per_run": "an hour"}, "not a time: exp_manager.max_time_per_run=an hour"),
    ],
)
def test_wrong_sections(tmp_path: Path, section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        opened({"exp_dir": str(tmp_path), **section})


def test_what_nemos_own_files_hold_is_accepted(tmp_path: Path) -> None:
    section = {"exp_dir": str(tmp_path), "ema": {"enable": False}, "create_early_stopping_callback": False,
               "log_step_timing": True, "files_to_copy": ["a"],
               "checkpoint_callback_params": {"save_nemo_on_train_end": True, "postfix": ".nemo"}}  # fmt: skip
    assert opened(section).notes == ["exp_manager.files_to_copy is not used: copy them yourself"]


def test_one_training_at_a_time(tmp_path: Path) -> None:
    """The second is refused before it looks for checkpoints; when the first has ended, or was killed, it may begin."""
    section = {"exp_dir": str(tmp_path), "name": "x", "resume_if_exists": True, "resume_ignore_no_checkpoint": True}
    other = "import sys; from pathlib import Path; from nest_ssl.base.files import lock\n" \
            "with lock(Path(sys.argv[1]), 'training'): print('held', flush=True); sys.stdin.read()"  # fmt: skip
    (tmp_path / "x").mkdir()
    command = [sys.executable, "-c", other, str(tmp_path / "x" / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"another process writes here \(training, pid {process.pid}@.*, since"):
            opened(section)
        assert opened({**section, "name": "y"}).resumed is None, "another folder is free"
        process.kill()
    assert "from scratch" in opened(section).notes[0]
    assert not (tmp_path / "x" / LOCK).exists()


def test_a_folder_of_checkpoints_elsewhere_is_locked_too(tmp_path: Path) -> None:
    params = {"dirpath": str(tmp_path / "d")}
    cfg = OmegaConf.create({"exp_manager": {"exp_dir": str(tmp_path / "a"), "checkpoint_callback_params": params}})
    with open_experiment(cfg, LENGTH):
        assert (tmp_path / "d" / LOCK).exists()


def test_settings_that_are_not_the_checkpoints_are_named(tmp_path: Path) -> None:
    saved = {"train_ds": {"batch_size": 2}, "optim": {"lr": 5.0, "betas": [0.9, 0.98]}}
    save(tmp_path / "x" / "checkpoints" / "a-last.ckpt", 4, hyper_parameters={"cfg": saved},
         lr_schedulers=[{"max_steps": 10}])  # fmt: skip
    section = {"exp_dir": str(tmp_path), "name": "x", "resume_if_exists": True}
    now = {"train_ds": {"batch_size": 4}, "optim": {"lr": 1.0, "betas": [0.9, 0.98]}}
    assert opened(section, model=now).notes[1:] == [
        "model.train_ds.batch_size is 2 in the checkpoint and 4 in this run: this run's holds from here on",
        "model.optim.lr is 5.0 in the checkpoint and 1.0 in this run: the checkpoint's stays",
        "the schedule stays planned for 10 steps, as in the checkpoint; this run has 100",
    ]
    save(tmp_path / "x" / "checkpoints" / "a-last.ckpt", 4, hyper_parameters={"cfg": saved},
         lr_schedulers=[{"max_steps": 100}])  # fmt: skip
    assert len(opened(section, model=saved).notes) == 1
    save(tmp_path / "x" / "checkpoints" / "a-last.ckpt", 4, nest_ssl={"numerics": "fast"})
    assert opened(section).notes[1].startswith("numerics is fast in the checkpoint and exact in this run: this run's")


def test_nothing_left_is_known_before_loggers_open(tmp_path: Path) -> None:
    save(tmp_path / "x" / "checkpoints" / "a-last.ckpt", 100)
    assert opened({"exp_dir": str(tmp_path), "name": "x", "resume_if_exists": True}).done
    save(tmp_path / "x" / "checkpoints" / "a-last.ckpt", 98)
    assert not opened({"exp_dir": str(tmp_path), "name": "x", "resume_if_exists": True}).done


def test_run_train_is_complete() -> None:
    cfg = compose(["run=train", "size=tiny"])
    assert cfg.save_steps == "none" and cfg.exp_manager.resume_if_exists and cfg.exp_manager.name == cfg.name
