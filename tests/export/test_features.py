"""Features of a trained encoder: each utterance's own, written once, the same whoever is beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from omegaconf import DictConfig

from nest_ssl.base.errors import UserError
from nest_ssl.cli.features import main
from nest_ssl.config.compose import compose
from nest_ssl.export import features as extraction
from nest_ssl.export.features import chosen, encode
from nest_ssl.export.safetensors import safetensors
from nest_ssl.export.trained import load_model
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
    model, config = load_model(archive)
    audio = torch.from_numpy(soundfile.read(tmp_path / "0.wav", dtype="float32")[0])
    count = len(model.encoder.layers)
    assert config["sample_rate"] == 16_000 and features.shape[0] == 2
    assert np.array_equal(features, encode(model, audio, [0, count - 1]).numpy())
    features_BFT, length_B = model.features(audio[None], torch.tensor([16_000]), None, None)
    encoded = model.encoder(audio_signal=features_BFT, length=length_B)
    assert np.array_equal(features[1], encoded[0][0].detach().numpy()), "the last layer's is the encoder's"
    assert np.load(second).shape[2] < features.shape[2], "a short utterance is not repeated"
    second.unlink()
    assert main(command) == 0 and second.exists() and first.stat().st_mtime_ns == before
    for other in (["--layers", "0"], ["--layers", "0,-1", "--format", "shar"]):
        with pytest.raises(UserError, match="features of another model, manifest, of other layers, or in another form"):
            main([archive, manifest, *other, "--out", str(out)])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Lhotse leaves tar files open
def test_other_formats_have_the_same_bits(
    archive: str, manifest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is whole stays, and one without its cuts is written again."""
    monkeypatch.setattr(extraction, "SHARD", 1)
    for form in extraction.FORMATS:
        assert main([archive, manifest, "--layers", "0,-1", "--format", form, "--out", str(tmp_path / form)]) == 0
    expected = [np.load(path) for path in sorted((tmp_path / "npy").glob("*.npy"))]
    assert [path.name for path in (tmp_path / "npy").glob("*1_*")] == ["00000001_0.npy"] and len(expected) == 2
    files = sorted((tmp_path / "safetensors").glob("*.safetensors"))
    assert [path.read_bytes() for path in files] == [safetensors({"layers": torch.from_numpy(e)}) for e in expected]

    shar = tmp_path / "shar"
    (shar / "cuts.000001.jsonl").unlink()
    (shar / "layers.000001.tar").write_bytes(b"cut short")
    before = (shar / "layers.000000.tar").stat().st_mtime_ns
    assert main([archive, manifest, "--layers", "0,-1", "--format", "shar", "--out", str(shar)]) == 0
    assert (shar / "layers.000000.tar").stat().st_mtime_ns == before
    fields = {name: sorted(map(str, shar.glob(f"{name}.*"))) for name in ("cuts", "layers")}
    cuts = list(CutSet.from_shar(fields=fields))
    assert [cut.id for cut in cuts] == ["00000001_0", "00000002_1"] and [cut.duration for cut in cuts] == [1.0, 0.4]
    assert all(np.array_equal(cut.load_layers(), features) for cut, features in zip(cuts, expected, strict=True))
    assert [cut.load_audio().shape[1] for cut in cuts] == [16_000, 6_400]


def test_the_numbers_of_layers() -> None:
    assert chosen("-1,0,3,-4", 4) == [0, 3]
    for wrong in ("4", "-5", "", "a", "1.5"):
        with pytest.raises(UserError, match="--layers"):
            chosen(wrong, 4)
