"""What is said before a run: refusals, room, and settings that make it another experiment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from train_nest import NEST

from nest_ssl.cli import doctor
from nest_ssl.run import doctor as examined
from nest_ssl.run.command_line import read_command_line
from nest_ssl.run.experiment import run

TINY = ["size=tiny", "overwrite=true", "save_steps=0", "batches=1", "model.train_ds.batch_size=2"]


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    said = [line.split(maxsplit=4) for line in capsys.readouterr().out.splitlines()]
    return {what: f"{state} {text}" for _, _, state, what, text in said}


def test_nothing_is_refused_and_room_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["nest", *TINY, f"output_dir={tmp_path / 'nest'}"]) == 0
    said = lines(capsys)
    assert said["data"] == "ok 1 batches in an epoch; 1 are trained" and said["settings"].startswith("ok for NeMo 3.0")
    assert "246,160 parameters" in said["memory"] and "for 1 recorded steps, on each side" in said["disk"]


@pytest.mark.parametrize(
    ("words", "batch", "measured"),
    [
        (["run=quick"], "2 x 6.0 s", 5.5),
        (["run=full"], "8 x 6.0 s", 7.1),
        (["run=full", "model.train_ds.batch_size=4", "model.train_ds.max_duration=3.0"], "4 x 3.0 s", 5.2),
        (["run=quick", "trainer.precision=64-true"], "2 x 6.0 s", 10.0),
        (["run=quick", "size=tiny"], "2 x 6.0 s", 0.8),
    ],
)
def test_memory_is_reckoned_for_the_batches_that_are_asked_for(
    tmp_path: Path, words: list[str], batch: str, measured: float
) -> None:
    """In GB, as measured of NeMo with all modules recorded; those of the third and fourth row as they follow."""
    words = ["size=large", *words, f"output_dir={tmp_path / 'nest'}"]
    (said,) = [answer.text for answer in examined.settings(NEST, words) if answer.what == "memory"]
    number, unit = said.removeprefix("about ").split()[:2]
    assert f", batches of {batch}; " in said
    assert float(number) / (1 if unit == "GB" else 1000) == pytest.approx(measured, rel=0.06)


def test_long_utterances_take_more_than_as_much_in_short_ones() -> None:
    """8 x 16 s, of which no practice data are: 16.3 GB were measured."""
    cfg = read_command_line("nest", ["size=large"])
    assert examined.reckoned_memory(cfg, 113_106_000, 8, 16.0) == pytest.approx(16.3e9, rel=0.05)
    assert examined.reckoned_memory(cfg, 113_106_000, 16, 8.0) < 15e9


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


def test_a_disk_has_to_hold_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = read_command_line("nest", ["size=large", "save_steps=0"])
    for free, state in ((5e9, "note"), (7e9, "ok")):  # a side takes 3.0 GB
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: shutil._ntuple_diskusage(0, 0, free))
        assert examined.room(cfg).state == state


CHOOSE = {
    "a file is where a folder has to be": "another folder.",
    "permission denied": "a folder you may write to, or change its permissions.",
    "read-only file system": "an output_dir on a writable disk.",
}


@pytest.mark.parametrize("told", CHOOSE)
def test_an_output_that_cannot_be_made_is_refused(
    told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere: what the system answers others is planted."""
    place, is_file = tmp_path / "there", told.startswith("a file")
    if is_file:
        place.write_text("mine")
    else:
        place.mkdir()
        monkeypatch.setattr(os, "access", lambda path, how: Path(path) != place)
    if told.startswith("read-only"):
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert doctor.main(["nest", *TINY, f"output_dir={place / 'new' / 'nest'}"]) == 3
    assert lines(capsys)["output"] == f"refused {told}: {place}/new/nest. Choose {CHOOSE[told]}"
    assert not is_file or place.read_text() == "mine"


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
