"""Features of a trained encoder: each utterance's own, written once, the same whoever is beside it."""

from __future__ import annotations

import json
import socket
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
from nest_ssl.export.parakeet import write_parakeet
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
        with pytest.raises(UserError, match="features of another model, manifest, .*, or in another format"):
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
    (shar / f".layers.000001.tar.partial-{2**31 - 1}@{socket.gethostname()}").touch()  # of a process that was killed
    before = (shar / "layers.000000.tar").stat().st_mtime_ns
    assert main([archive, manifest, "--layers", "0,-1", "--format", "shar", "--out", str(shar)]) == 0
    assert (shar / "layers.000000.tar").stat().st_mtime_ns == before
    cuts = list(CutSet.from_shar(in_dir=shar))
    assert [cut.id for cut in cuts] == ["00000001_0", "00000002_1"] and [cut.duration for cut in cuts] == [1.0, 0.4]
    assert all(np.array_equal(cut.load_layers(), features) for cut, features in zip(cuts, expected, strict=True))
    assert [cut.load_audio().shape[1] for cut in cuts] == [16_000, 6_400]


def test_the_numbers_of_layers() -> None:
    assert chosen("-1,0,3,-4", 4) == [0, 3]
    for wrong in ("4", "-5", "", "a", "1.5"):
        with pytest.raises(UserError, match="--layers"):
            chosen(wrong, 4)


@pytest.mark.parametrize(
    ("line", "words", "said"),
    [
        ({"offset": 9.0}, (), "offset 9 s lies beyond the end .0.500 s.: .*b.wav .*m.json, line 1.. Correct the manif"),
        ({"duration": 9.0}, (), "a truncated audio file .0.50 s where 9.00 s are promised"),
        ({}, (), "2 channels are left: .*Set channel_selector to one"),
        ({}, ("--channel-selector", "2"), "2 channels, and channel_selector=2 does not leave one"),
        (None, (), "a manifest without utterances: .*m.json"),
    ],
)
def test_utterances_that_cannot_be_encoded(
    archive: str, tmp_path: Path, line: dict[str, float] | None, words: tuple[str, ...], said: str
) -> None:
    soundfile.write(tmp_path / "b.wav", np.zeros((8_000, 2 if not line else 1)), 16_000)
    (tmp_path / "m.json").write_text("" if line is None else json.dumps({"audio_filepath": "b.wav", **line}))
    with pytest.raises(UserError, match=said):
        main([archive, str(tmp_path / "m.json"), *words, "--out", str(tmp_path / "out")])


def test_one_channel_of_several(archive: str, manifest: str, tmp_path: Path) -> None:
    left, _ = soundfile.read(tmp_path / "0.wav")
    soundfile.write(tmp_path / "b.wav", np.stack([np.zeros_like(left), left], axis=1), 16_000)
    (tmp_path / "b.json").write_text(json.dumps({"audio_filepath": "b.wav"}))
    for name, more in (("m", ()), ("b", ("--channel-selector", "1"))):
        assert (
            main([archive, str(tmp_path / f"{name}.json"), "--layers", "-1,0", *more, "--out", str(tmp_path / name)])
            == 0
        )
    assert (tmp_path / "b/00000001_b.npy").read_bytes() == (tmp_path / "m/00000001_0.npy").read_bytes()


@pytest.mark.parametrize("content", ["{", "[]", "3", "null"])
def test_damaged_settings(archive: str, manifest: str, tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/features.json").write_text(content)
    with pytest.raises(UserError, match="settings that are damaged: .*features.json"):
        main([archive, manifest, "--out", str(tmp_path / "out")])


def test_a_checkpoint_without_sections(tmp_path: Path) -> None:
    path = str(tmp_path / "a.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {"cfg": {"sample_rate": 16_000}}}, path)
    for read in (load_model, lambda path: write_parakeet(path, tmp_path / "out")):
        with pytest.raises(UserError, match="a model whose settings have no preprocessor: .*a.ckpt. Give the .nemo"):
            read(path)
