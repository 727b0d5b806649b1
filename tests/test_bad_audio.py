"""An audio file that turns out bad in mid-training: one line and nothing left behind, or skipped and counted."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from train_nemo import NEMO
from train_nest import NEST

from nest_ssl.base.errors import UserError, run_command
from nest_ssl.config.compose import compose
from nest_ssl.data import check
from nest_ssl.recording.reader import open_recording
from nest_ssl.run.experiment import Subject, run
from nest_ssl.run.preflight import check_data

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "dummy_ssl"
BAD_LINE = 3
# As many workers as a test may start without a warning, for fork or for too few cores.
WORKERS = [0, pytest.param(2, marks=pytest.mark.filterwarnings("ignore"))]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four utterances in FLAC; the end of the third is missing, which its header does not tell."""
    lines = []
    for name in ("00", "01", "02", "03"):
        samples, rate = soundfile.read(DATA / "train" / f"utt_{name}.wav")
        soundfile.write(tmp_path / f"{name}.flac", samples, rate)
        lines.append(json.dumps({"audio_filepath": f"{name}.flac", "duration": len(samples) / rate}) + "\n")
    bad = tmp_path / "02.flac"
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    manifest = tmp_path / "speech.json"
    manifest.write_text("".join(lines))
    return manifest


def options(corpus: Path, *more: str) -> list[str]:
    return ["size=tiny", "model.encoder.n_layers=1", "model.encoder.subsampling_conv_channels=4", "batches=8",
            f"model.train_ds.manifest_filepath={corpus}", "model.train_ds.batch_size=1",
            f"output_dir={corpus.parent / 'out'}", *more]  # fmt: skip


@pytest.mark.parametrize("workers", WORKERS)
def test_training_stops_at_it(corpus: Path, workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: run(NEST, options(corpus, f"model.train_ds.num_workers={workers}", "save_steps=0,1")))
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 3 and len(errors) == 1
    assert "02.flac" in errors[0] and f"speech.json, line {BAD_LINE}" in errors[0]
    assert "truncated" in errors[0] or "cannot be decoded" in errors[0]
    assert not list(corpus.parent.glob("*out*/")), "nothing half-written is left"


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_it(corpus: Path, workers: int, python: str) -> None:
    """In a process of its own: pytest takes the log."""
    more = ["bad_audio=skip", "save_steps=all", "record=boundaries", f"model.train_ds.num_workers={workers}"]
    validation = [f"model.validation_ds.manifest_filepath={corpus}", "trainer.val_check_interval=1.0"]
    command = [python, str(ROOT / "scripts" / "train_nest.py"), *options(corpus, *more, *validation)]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    recording = open_recording(corpus.parent / "out")
    lengths = [int(recording.step(step).batch()["audio_len"]) for step in recording.steps]
    assert lengths == [48_000, 48_000, 71_680, 48_000] * 2, "four batches an epoch, the last from another pass"
    skipped = recording.index.data.skipped
    assert skipped is not None and skipped.utterances == 4, "in two epochs and two validations"
    assert [(file.audio, file.manifest, file.line) for file in skipped.files] == [("02.flac", "speech.json", BAD_LINE)]
    log = (corpus.parent / "out.log").read_text()
    assert log.count("skipped: ") == 1 and f"speech.json, line {BAD_LINE}" in log
    assert "trained 8 steps, train_loss" in told.stdout and "skipped 1 audio file (4 times)" in told.stdout
    assert told.stderr.count("val_loss") == 2


def test_what_is_skipped_is_as_if_it_were_not_there(corpus: Path) -> None:
    lines = corpus.read_text().splitlines(keepends=True)
    without = corpus.with_name("without.json")
    without.write_text("".join(lines[:2] + lines[3:]))
    weights = []
    for manifest, batch_size in ((corpus, 4), (without, 3)):
        more = [f"model.train_ds.batch_size={batch_size}", "bad_audio=skip", "save_steps=2", "batches=3",
                "record=boundaries",
                "overwrite=true", "run=full", "model.train_ds.num_workers=0", "model.train_ds.pin_memory=false",
                "model.train_ds.shuffle=false", "model.validation_ds=null"]  # fmt: skip
        assert run(NEST, options(manifest, *more)) == 0
        weights.append(open_recording(corpus.parent / "out").step(2).weights())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.parametrize("subject", [NEMO, NEST], ids=lambda subject: subject.name)
def test_only_the_port_skips(corpus: Path, subject: Subject, capfd: pytest.CaptureFixture[str]) -> None:
    (corpus.parent / "01.flac").write_text("not audio")
    cfg = compose(options(corpus, "bad_audio=skip"))
    if subject is NEST:
        check_data(subject, cfg)
        return
    with pytest.raises(UserError, match=r"01.flac .*line 2"):
        check_data(subject, cfg)


def test_all_are_bad(corpus: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each begins well, so that only training can tell."""
    for path in corpus.parent.glob("0[013].flac"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="none of the audio can be used: .*line 1"):
        run(NEST, options(corpus, "bad_audio=skip"))


@pytest.mark.parametrize("bad_audio", ["stop", "skip"])
@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/events.out"), ConnectionResetError(104, "logger is gone"),
    FileNotFoundError(2, os.strerror(2), "outputs/log"),
], ids=lambda error: type(error).__name__ if isinstance(error, Exception) else None)  # fmt: skip
def test_what_reading_did_not_raise_blames_no_file(
    corpus: Path, bad_audio: str, error: OSError, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk, or a logger, with a bad file in the corpus: named is what happened, and nothing is decoded."""

    def build(*arguments: Any) -> Any:
        model = NEST.build_model(*arguments)
        monkeypatch.setattr(check, "load_utterance", None)  # decodes nothing, or fails

        def training_step(*_: Any) -> Any:
            raise error

        model.training_step = training_step
        return model

    subject = dataclasses.replace(NEST, build_model=build)
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: run(subject, options(corpus, f"bad_audio={bad_audio}")))
    message = capfd.readouterr().err
    assert stop.value.code == 3
    assert "flac" not in message and "audio" not in message.replace(str(corpus.parent), "")
    assert error.errno != errno.ENOSPC or "no space left on the disk: outputs/events.out" in message


def test_another_word_for_it(corpus: Path) -> None:
    with pytest.raises(UserError, match="not supported: ignore: bad_audio. Supported: stop, skip"):
        run(NEST, options(corpus, "bad_audio=ignore"))


def test_a_resumed_run_skips_the_same(corpus: Path) -> None:
    """Stopped within the second epoch, whose batches depend on what the first one skipped."""
    weights = []
    for name, stops in (("whole", (11,)), ("stopped", (6, 11))):
        for steps in stops:
            more = ["run=full", "bad_audio=skip", f"save_steps={steps - 1}", "overwrite=true", "batches=null",
                    f"trainer.max_steps={steps}", "trainer.limit_train_batches=1.0", "trainer.max_epochs=9",
                    "model.train_ds.num_workers=0", "model.train_ds.pin_memory=false", "model.validation_ds=null",
                    f"exp_manager.explicit_log_dir={corpus.parent / name}", "exp_manager.resume_if_exists=true",
                    "exp_manager.resume_ignore_no_checkpoint=true", "exp_manager.create_tensorboard_logger=false",
                    "exp_manager.checkpoint_callback_params={every_n_train_steps: 3, save_top_k: 0}"]  # fmt: skip
            assert run(NEST, options(corpus, *more)) == 0
        weights.append(open_recording(corpus.parent / "out").step(10).weights())
    assert open_recording(corpus.parent / "out").index.resumed_from.steps == 6
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
