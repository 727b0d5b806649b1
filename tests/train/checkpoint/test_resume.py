"""Training that was stopped and resumed ends with the bits of training that was not, whatever it was doing."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import InterruptedRun, UserError
from nest_ssl.cli.data import main as data
from nest_ssl.recording.reader import open_recording
from nest_ssl.train.checkpoint import archiving
from nest_ssl.train.checkpoint.nemo_archive import load_nemo
from nest_ssl.train.module import NestModule
from tests.train.checkpoint.resuming import assert_same, last, leaves, train

EVERY = "exp_manager.checkpoint_callback_params.every_n_train_steps"
NO_VALIDATION = ("trainer.limit_val_batches=0", "exp_manager.checkpoint_callback_params.monitor=null")


@contextmanager
def signal_at(monkeypatch: pytest.MonkeyPatch, step: str, count: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal in the `count`th call of a step of the model."""
    original, seen = getattr(NestModule, step), 0

    def signalled(self: NestModule, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with monkeypatch.context() as patch:
        patch.setattr(NestModule, step, signalled)
        yield
    signal.signal(signal.SIGINT, before)


TERMINATED, INTERRUPTED = ("training_step", signal.SIGTERM), ("training_step", signal.SIGINT)
IN_VALIDATION = ("validation_step", signal.SIGTERM)
BETWEEN = ("on_train_batch_end", signal.SIGTERM)  # behind all hooks of the checkpoints for this batch
Stop = tuple[tuple[str, signal.Signals], int]
CASES: dict[str, tuple[list[str], list[Stop]]] = {
    # 5 batches an epoch; each signal comes in so manieth a step behind the one before.
    "at an epoch's end, within one, within a validation": (
        ["trainer.max_epochs=3"], [(TERMINATED, 5), (INTERRUPTED, 2), (BETWEEN, 1), (IN_VALIDATION, 1)],
    ),
    "workers, several validations an epoch": (
        ["model.train_ds.num_workers=2", "trainer.val_check_interval=0.4", "trainer.accumulate_grad_batches=2"],
        [(TERMINATED, 8)],
    ),
    "half accumulated, in bfloat16": (
        ["trainer.accumulate_grad_batches=3", "trainer.precision=bf16-mixed", "trainer.val_check_interval=2",
         "trainer.gradient_clip_val=0.5", "trainer.max_epochs=1"],  # bfloat16 is slow on a CPU
        [(TERMINATED, 2), (IN_VALIDATION, 1)],
    ),
    "steps counted, no validation, in order, an incomplete batch": (
        ["trainer.max_steps=9", "trainer.max_epochs=9", *NO_VALIDATION, f"{EVERY}=4", "model.train_ds.shuffle=false",
         "model.train_ds.drop_last=false", "model.train_ds.batch_size=3"],
        [(TERMINATED, 4), (TERMINATED, 3)],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    settings, stops = CASES[case]
    train(tmp_path / "whole", *settings)
    for (step, number), count in stops:
        with signal_at(monkeypatch, step, count, number), pytest.raises(InterruptedRun) as stopped:
            train(tmp_path / "parts", *settings)
        assert stopped.value.signal_number == number and stopped.value.saved.is_file()
    train(tmp_path / "parts", *settings)
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def shar(tmp_path_factory: pytest.TempPathFactory) -> str:
    data(["--out", str(folder := tmp_path_factory.mktemp("shar") / "data"), "--kind", "shar"])
    return f"{folder}_shar"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of workers on few cores, and of tar files that stay open
@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shar: str, workers: int) -> None:
    """Lightning takes a batch of it ahead; the second epoch begins behind that, also where training was stopped."""
    settings = ("kind=shar", f"model.train_ds.shar_path={shar}", "model.train_ds.batch_size=null",
                f"model.train_ds.num_workers={workers}", "trainer.limit_train_batches=3", "trainer.max_steps=6",
                *NO_VALIDATION, f"{EVERY}=3")  # fmt: skip
    train(tmp_path / "whole", *settings)
    for count in (2, 3):
        with signal_at(monkeypatch, "training_step", count), pytest.raises(InterruptedRun):
            train(tmp_path / "parts", *settings)
    train(tmp_path / "parts", *settings)
    gc.collect()  # streams cut short keep their tar files open until then
    assert_same(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    train(folder := tmp_path_factory.mktemp("whole"), "trainer.max_epochs=1", "save_steps=all")
    return folder


def test_a_resumed_run_is_recorded_as_what_it_is(
    one_epoch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with signal_at(monkeypatch, "training_step", 3), pytest.raises(InterruptedRun):
        train(tmp_path / "parts", "trainer.max_epochs=1")
    with pytest.raises(UserError, match="save_steps names 2, and this run goes on at 3"):
        train(tmp_path / "parts", "trainer.max_epochs=1", "save_steps=2-4")
    train(tmp_path / "parts", "trainer.max_epochs=1", "save_steps=all")
    whole, parts = (open_recording(folder / "recording") for folder in (one_epoch, tmp_path / "parts"))
    assert parts.steps == [3, 4] and parts.index.resumed_from.batches == 3
    before, after = whole.step(2).weights(), parts.initial_weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for step in parts.steps:
        for kind in ("batch", "layer_outputs", "parameter_gradients", "parameter_weights", "optimizer_state"):
            name = next(name for name in parts.index.tensors if name.startswith(f"step_{step}/{kind}."))
            assert parts.index.tensors[name] == whole.index.tensors[name]
        assert parts.step(step).rng() == whole.step(step).rng()
        assert parts.index.steps[step] == whole.index.steps[step]


def test_what_is_done_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is another model's checkpoint taken; and with more epochs the run goes on."""
    train(tmp_path, "trainer.max_epochs=1", "save_steps=0")
    done, recorded = last(tmp_path), (tmp_path / "recording" / "recording.json").read_bytes()
    for length in ("trainer.max_epochs=1", "trainer.max_steps=5"):
        capsys.readouterr()
        train(tmp_path, length)
        assert "nothing is left to train" in capsys.readouterr().out
        assert dict(leaves(last(tmp_path))) == dict(leaves(done))
        assert (tmp_path / "recording" / "recording.json").read_bytes() == recorded
    with pytest.raises(UserError, match=r"encoder\.[\w.]+ is \[.*\] in it and \[.*\] in this model"):
        train(tmp_path, "trainer.max_epochs=2", "model.encoder.ff_expansion_factor=2")
    train(tmp_path, "trainer.max_epochs=2")
    assert last(tmp_path)["global_step"] == 10


def test_a_disk_that_fills_leaves_what_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth checkpoint is written half."""
    settings = ["trainer.max_epochs=1", *NO_VALIDATION, f"{EVERY}=1"]
    train(tmp_path / "whole", *settings)
    save, saved = torch.save, 0

    def fill(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal saved
        saved += ".ckpt.partial-" in str(path)
        if saved == 4:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "no space left")
        save(value, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        with pytest.raises(UserError, match="no space left on the disk"):
            train(tmp_path / "parts", *settings)
    train(tmp_path / "parts", *settings)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_disk_that_is_full_at_the_very_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is trained and saved but the archive: the next run, which has nothing to train, writes that."""
    for length in ("trainer.max_epochs=1", "trainer.max_steps=5"):
        folder, archive = tmp_path / length, tmp_path / length / "x" / "checkpoints" / "x.nemo"

        def fail(*_: Any) -> None:
            raise UserError("no space left on the disk", "x.nemo", "Free some.")

        with monkeypatch.context() as patch:
            patch.setattr(archiving, "save_nemo", fail)
            with pytest.raises(UserError, match="no space left"):
                train(folder, length)
        assert not archive.exists() and not (folder / "recording").exists()
        train(folder, length)
        weights, saved = load_nemo(archive)[1], last(folder)["state_dict"]
        assert all(torch.equal(weights[name], saved[name]) for name in saved)


def test_a_run_with_nothing_to_do_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Above all no further file of TensorBoard's; and it says that there is no recording where there is none."""
    logged = "exp_manager.create_tensorboard_logger=true"
    train(tmp_path, "trainer.max_epochs=1", logged)
    shutil.rmtree(tmp_path / "recording")
    before = sorted(path for path in (tmp_path / "x").rglob("*") if path.is_file())
    assert any("tfevents" in path.name for path in before)
    capsys.readouterr()
    train(tmp_path, "trainer.max_epochs=1", logged)
    assert sorted(path for path in (tmp_path / "x").rglob("*") if path.is_file()) == before
    assert "nothing is left to train; an earlier recording in" in (said := capsys.readouterr().out)
    assert "there is none" in said


def test_a_metric_that_is_not_known_yet_is_left_out_of_the_name(tmp_path: Path) -> None:
    """Lightning writes `val_loss=0.0000`, which looks like a perfect score."""
    train(tmp_path, "trainer.max_epochs=1", "exp_manager.max_time_per_run=0")
    assert [path.name for path in (tmp_path / "x" / "checkpoints").glob("*.ckpt")] == ["x--epoch=0-last.ckpt"]


def test_time_that_is_up_ends_a_run_well(one_epoch: Path, tmp_path: Path) -> None:
    train(tmp_path, "trainer.max_epochs=1", "exp_manager.max_time_per_run=0")
    assert last(tmp_path)["global_step"] == 1
    train(tmp_path, "trainer.max_epochs=1")
    assert_same(one_epoch, tmp_path)


def test_a_metric_that_nothing_logs_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val_los"):
        train(tmp_path, "trainer.max_epochs=1", "exp_manager.checkpoint_callback_params.monitor=val_los")
