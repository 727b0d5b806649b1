"""Data that changes while a run goes on: the run keeps its recording, with the hashes of what it was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
from train_nest import NEST

from nest_ssl.run.experiment import run

ROOT = Path(__file__).resolve().parents[2]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two utterances and a manifest of them."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = []
    for name in ("00", "01"):
        samples, rate = soundfile.read(ROOT / "data" / "dummy_ssl" / "train" / f"utt_{name}.wav")
        soundfile.write(folder / f"{name}.wav", samples, rate)
        lines.append(json.dumps({"audio_filepath": f"{name}.wav", "duration": len(samples) / rate}) + "\n")
    (folder / "train.json").write_text("".join(lines))
    return folder


def replaced(folder: Path) -> None:
    data = bytearray((folder / "00.wav").read_bytes())
    data[-2] ^= 1
    (folder / "00.wav").write_bytes(data)


@pytest.mark.parametrize(("meanwhile", "changed"), [
    (lambda folder: None, []),
    (replaced, ["00.wav"]),
    (lambda folder: (folder / "train.json").unlink(), ["train.json"]),
    (lambda folder: (folder / "train.json").write_text("{"), ["train.json"]),
    (shutil.rmtree, ["train.json", "00.wav", "01.wav"]),
], ids=["nothing", "audio replaced", "manifest deleted", "manifest broken", "folder gone"])  # fmt: skip
def test_a_finished_run_keeps_its_recording(
    corpus: Path, tmp_path: Path, meanwhile: Callable[[Path], Any], changed: list[str]
) -> None:
    before = {path.name: sha256(path) for path in corpus.iterdir()}

    def build(*arguments: Any) -> Any:
        model = NEST.build_model(*arguments)
        model.on_train_end = lambda: meanwhile(corpus)
        return model

    options = ["size=tiny", f"model.train_ds.manifest_filepath={corpus}/train.json", "model.train_ds.batch_size=2"]
    assert run(dataclasses.replace(NEST, build_model=build), [*options, f"output_dir={tmp_path / 'out'}"]) == 0
    data = json.loads((tmp_path / "out" / "recording.json").read_text())["data"]["train"]
    assert data["manifests"] == [{"name": "train.json", "sha256": before.pop("train.json")}]
    assert data["audio"] == before
    assert data["changed"] == changed
