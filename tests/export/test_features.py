"""Features of a trained encoder: each utterance's own, written once, the same whoever is beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig

from nest_ssl.base.errors import UserError
from nest_ssl.cli.features import main
from nest_ssl.config.compose import compose
from nest_ssl.export.features import chosen, encode, load_model
from nest_ssl.train.checkpoint.nemo_archive import save_nemo
from nest_ssl.train.module import NestModule


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    cfg: DictConfig = compose(["size=tiny", "model.train_ds=null", "model.validation_ds=null"])
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("archive") / "a.nemo"
    save_nemo(NestModule(cfg.model), path)
    return str(path)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    lines = []
    for number, seconds in enumerate((1.0, 0.4)):
        samples = np.random.default_rng(number).uniform(-0.3, 0.3, int(seconds * 16_000))
        soundfile.write(tmp_path / f"{number}.wav", samples, 16_000)
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", "duration": seconds}) + "\n")
    (tmp_path / "m.json").write_text("".join(lines))
    return str(tmp_path / "m.json")


def test_a_file_for_each_line_is_written_once(archive: str, manifest: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [archive, manifest, "--layers", "0,-1", "--out", str(out)]
    assert main(command) == 0
    first, second = out / "00000001_0.npy", out / "00000002_1.npy"
    features, before = np.load(first), first.stat().st_mtime_ns
    model, rate = load_model(archive)
    audio = torch.from_numpy(soundfile.read(tmp_path / "0.wav", dtype="float32")[0])
    count = len(model.encoder.layers)
    assert rate == 16_000 and features.shape[0] == 2
    assert np.array_equal(features, encode(model, audio, [0, count - 1]).numpy())
    features_BFT, length_B = model.features(audio[None], torch.tensor([16_000]), None, None)
    encoded = model.encoder(audio_signal=features_BFT, length=length_B)
    assert np.array_equal(features[1], encoded[0][0].detach().numpy()), "the last layer's is the encoder's"
    assert np.load(second).shape[2] < features.shape[2], "a short utterance is not repeated"
    second.unlink()
    assert main(command) == 0 and second.exists() and first.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="features of another model, manifest, or of other layers"):
        main([archive, manifest, "--layers", "0", "--out", str(out)])


def test_the_numbers_of_layers() -> None:
    assert chosen("-1,0,3,-4", 4) == [0, 3]
    for wrong in ("4", "-5", "", "a", "1.5"):
        with pytest.raises(UserError, match="--layers"):
            chosen(wrong, 4)
