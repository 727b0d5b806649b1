"""What is said before a run: refusals, room, and settings that make it another experiment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from train_nest import NEST

from nest_ssl.cli import doctor
from nest_ssl.run import doctor as examined
from nest_ssl.run.experiment import run

TINY = ["size=tiny", "overwrite=true", "save_steps=0", "batches=1", "model.train_ds.batch_size=2"]


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    said = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    return {what: f"{state} {text}" for _, _, state, what, text in said}


def test_nothing_is_refused_and_room_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["nest", *TINY, f"output_dir={tmp_path / 'nest'}"]) == 0
    said = lines(capsys)
    assert said["data"] == "ok 1 batches in an epoch; 1 are trained" and said["settings"].startswith("ok for NeMo 3.0")
    assert "246,160 parameters" in said["memory"] and "for 1 recorded steps" in said["disk"]


@pytest.mark.parametrize(
    ("words", "what", "text"),
    [
        (["model.optim.lr=abc"], "settings", "model.optim.lr"),
        (["model.train_ds.manifest_filepath=nowhere.json"], "data", "no such manifest"),
    ],
)
def test_what_a_run_would_be_refused_for(
    words: list[str], what: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["nest", *TINY, *words, f"output_dir={tmp_path / 'nest'}"]) == 3
    said = lines(capsys)
    assert said[what].startswith("refused") and text in said[what]


def test_too_little_memory_or_another_version_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examined, "available_memory", lambda: 10_000_000)
    version = examined.importlib.metadata.version
    monkeypatch.setattr(
        examined.importlib.metadata, "version", lambda name: "0.1" if name == "numpy" else version(name)
    )
    assert doctor.main(["nest", *TINY, f"output_dir={tmp_path / 'nest'}"]) == 0
    said = lines(capsys)
    assert said["memory"].startswith("note") and "10 MB are available" in said["memory"]
    assert said["versions"].startswith("note") and "numpy 0.1, locked" in said["versions"]


def test_another_experiment_than_the_recording_beside_it_is_said_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(NEST, [*TINY, f"output_dir={tmp_path / 'nest'}"]) == 0
    shutil.move(tmp_path / "nest", tmp_path / "nemo")
    capsys.readouterr()
    assert run(NEST, [*TINY, f"output_dir={tmp_path / 'nest'}", "operators=true"]) == 0
    assert "exit code 4" not in capsys.readouterr().out
    others = ["seed=7", "model.optim.lr=1.0", "save_steps=0,1", "batches=2", "model.train_ds.min_duration=0.2"]
    assert run(NEST, [*TINY, *others, f"output_dir={tmp_path / 'nest'}"]) == 0
    said = capsys.readouterr().out
    assert f"note: seed is 7, and was 42: {tmp_path / 'nemo'} is of another experiment" in said
    assert said.index("exit code 4") < said.index("nest: trained") and "more such settings" in said
