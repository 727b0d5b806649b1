"""init_from_*: NeMo's keys and meaning; the tests against NeMo show that its weights come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_outputs import main as compare_outputs
from omegaconf import OmegaConf
from train_nest import NEST, build_model

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import sha256_of
from nest_ssl.base.rng import rng_digests
from nest_ssl.config.compose import compose, data_paths
from nest_ssl.config.strict import read_config
from nest_ssl.run.experiment import run
from nest_ssl.train.checkpoint import init_from
from nest_ssl.train.checkpoint.init_from import init_from_pretrained, load_sources, read_sources
from nest_ssl.train.checkpoint.nemo_archive import load_nemo, write_nemo
from nest_ssl.train.module import NestModule

Tiny = Callable[..., NestModule]
File = Callable[..., Path]


def initialised(model: NestModule, **settings: Any) -> NestModule:
    init_from_pretrained(model, OmegaConf.create(settings))
    return model


def same(one: NestModule, other: NestModule) -> set[str]:
    """The names whose values are the same."""
    theirs = other.state_dict()
    return {name for name, tensor in one.state_dict().items() if torch.equal(tensor, theirs[name])}


def test_all_of_an_archive(tiny: Tiny, archive: File) -> None:
    model = initialised(tiny(seed=1), init_from_nemo_model=str(archive("a", seed=2)))
    assert same(model, tiny(seed=2)) == set(model.state_dict())


def test_all_of_a_checkpoint(tiny: Tiny, checkpoint: File) -> None:
    model = initialised(tiny(seed=1), init_from_ptl_ckpt=str(checkpoint("a", seed=2)))
    assert same(model, tiny(seed=2)) == set(model.state_dict())


@pytest.mark.parametrize("key", ["init_from_nemo_model", "init_from_ptl_ckpt"])
def test_include_and_exclude(tiny: Tiny, archive: File, checkpoint: File, key: str) -> None:
    path = (archive if key == "init_from_nemo_model" else checkpoint)("a", seed=2)
    part = {"path": str(path), "include": ["encoder", "quantizer"], "exclude": ["layers.1"]}
    start, source = tiny(seed=1), tiny(seed=2)
    model = initialised(tiny(seed=1), **{key: {"any_name": part}})
    taken = {n for n in model.state_dict() if ("encoder" in n or "quantizer" in n) and "layers.1" not in n}
    alike = same(start, source)  # zeros and ones
    assert same(model, source) == taken | alike
    assert same(model, start) == set(model.state_dict()) - taken | alike
    assert taken - alike and set(model.state_dict()) - taken - alike


def test_of_several_the_last_holds(tiny: Tiny, archive: File) -> None:
    sources = {
        "a": {"path": str(archive("a", seed=2))},
        "b": {"path": str(archive("b", seed=3)), "include": ["decoder"]},
    }
    model = initialised(tiny(seed=1), init_from_nemo_model=sources)
    decoder = {name for name in model.state_dict() if name.startswith("decoder")}
    assert same(model, tiny(seed=3)) >= decoder and same(model, tiny(seed=2)) >= set(model.state_dict()) - decoder


def test_an_archive_draws_and_a_checkpoint_does_not(tiny: Tiny, archive: File, checkpoint: File) -> None:
    """As in NeMo, which builds the archive's model: what is drawn afterwards (dropout, dither) depends on it."""
    paths = str(archive("a", seed=2)), str(checkpoint("a", seed=2))
    settings = tiny(seed=1).settings
    once = rng_digests()
    NestModule(settings)
    twice = rng_digests()
    initialised(tiny(seed=1), init_from_nemo_model=paths[0])
    assert rng_digests() == twice != once
    initialised(tiny(seed=1), init_from_ptl_ckpt=paths[1])
    assert rng_digests() == once


def test_a_model_that_is_not_the_same(tiny: Tiny, archive: File) -> None:
    """Entries that only the file has are passed over; another shape is an error, unless excluded."""
    path = str(archive("deep", "model.encoder.n_layers=3", "model.num_classes=64", seed=2))
    cfg = compose(["size=tiny", "run=full", f"init_from_nemo_model={path}"])
    cfg.model.train_ds = cfg.model.validation_ds = None
    with pytest.raises(UserError, match=r"weights of another shape: .*deep\.nemo: size mismatch for quantizer"):
        build_model(cfg)
    cfg.init_from_nemo_model = {"x": {"path": path, "exclude": ["decoder", "quantizer"]}}
    model = build_model(cfg)
    source = load_nemo(path)[1]
    assert torch.equal(model.state_dict()["encoder.pre_encode.out.weight"], source["encoder.pre_encode.out.weight"])


def test_nothing_to_do(tiny: Tiny) -> None:
    for settings in ({}, {"init_from_nemo_model": None}, {"init_from_pretrained_model": None}):
        cfg = OmegaConf.create(settings)
        assert read_sources(cfg) == [] == load_sources(cfg)
        assert same(initialised(tiny(), **settings), tiny()) == set(tiny().state_dict())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"init_from_nemo_model": "none.nemo"}, "no such file: none.nemo"),
        ({"init_from_ptl_ckpt": "none.ckpt"}, "no such file: none.ckpt"),
        ({"init_from_nemo_model": "a.nemo", "init_from_ptl_ckpt": None}, "only one source"),
        ({"init_from_pretrained_model": "ssl_en_nest_large_v1.0"}, "Nothing is fetched from a network"),
        ({"init_from_nemo_model": ["a.nemo"]}, "init_from_nemo_model. Supported"),
        ({"init_from_nemo_model": {"path": "a.nemo"}}, "init_from_nemo_model.path"),
        ({"init_from_nemo_model": {"a": {"include": ["x"]}}}, "a key is missing: init_from_nemo_model.a.path"),
        ({"init_from_nemo_model": {"a": {"path": "a.nemo", "includes": ["x"]}}}, "Did you mean .*a.include"),
        ({"init_from_nemo_model": {"a": {"path": "a.nemo", "include": "encoder"}}}, "a.include. Supported: a list"),
        ({"init_from_ptl_ckpt": {"a": {"path": "a.nemo", "exclude": None}}}, "a.exclude. Supported: a list"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], told: str) -> None:
    overrides = [f"{key}={json.dumps(value)}".replace('"', "") for key, value in settings.items()]
    with pytest.raises(UserError, match=told):
        load_sources(read_config(["size=tiny", *overrides])[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c, s: c.update(target="nemo.collections.asr.models.EncDecCTCModel"), "not a NEST model"),
        (lambda c, s: c.update(target="os.system"), "not a NEST model"),
        (lambda c, s: c["encoder"].update(_target_="os.system"), "model.encoder._target_"),
        (lambda c, s: c.pop("encoder"), "model.encoder"),
        (lambda c, s: c["encoder"].update(n_layers=1), "encoder.n_layers=1, and weights of 2 layers"),
        (lambda c, s: c["encoder"].update(n_layers=10**9), "encoder.n_layers=1000000000"),
        (lambda c, s: c["encoder"].update(n_layers="2"), "encoder.n_layers=2"),
        (lambda c, s: c["encoder"].update(d_model=10**12), "b.nemo"),
        (lambda c, s: c["encoder"].update(d_model="x"), "b.nemo"),
        (lambda c, s: c["preprocessor"].update(n_fft=1 << 30), "n_fft"),
        (lambda c, s: c["preprocessor"].update(features=0), "preprocessor.features=0"),
        (lambda c, s: c["decoder"].update(num_decoders=10**9), "num_decoders"),
        (lambda c, s: c.update(encoder=[1]), "encoder"),
        (lambda c, s: s["mask_processor.mask_embedding"].fill_(float("nan")), "NaN or infinite.*mask_embedding"),
        (lambda c, s: s.update({"decoder.decoder_layers.0.0.bias": torch.zeros(128).to(torch.complex64)}), "complex64"),
        (lambda c, s: s.pop("mask_processor.mask_embedding"), "Missing key"),
        (lambda c, s: s.update({"mask_processor.mask_embedding": torch.ones(3)}), "size mismatch"),
    ],
)
def test_archives_that_are_refused(tmp_path: Path, archive: File, change: Any, told: str) -> None:
    config, state_dict = load_nemo(archive("a"))
    change(config, state_dict)
    write_nemo(config, state_dict, path := tmp_path / "b.nemo")
    with pytest.raises(UserError, match=told) as error:
        load_sources(OmegaConf.create({"init_from_nemo_model": str(path)}))
    assert str(path) in str(error.value)


def test_init_strict_takes_an_archive_without_some_weights(tmp_path: Path, tiny: Tiny, archive: File) -> None:
    """What it lacks is then what its model was built with: NeMo draws it from the seed, and so do we."""
    config, state_dict = load_nemo(archive("a", seed=2))
    del state_dict["mask_processor.mask_embedding"]
    write_nemo(config, state_dict, path := tmp_path / "b.nemo")
    model = initialised(tiny(seed=1), init_from_nemo_model=str(path), init_strict=False)
    different = set(model.state_dict()) - same(model, tiny(seed=2))
    assert different == {"mask_processor.mask_embedding"}
    assert "mask_processor.mask_embedding" not in same(model, tiny(seed=1))


def test_one_kind_taken_for_the_other(archive: File, checkpoint: File) -> None:
    pairs = {"init_from_nemo_model": checkpoint("a"), "init_from_ptl_ckpt": archive("a")}
    for (key, path), other in zip(pairs.items(), reversed(pairs), strict=True):
        with pytest.raises(UserError, match=f"{key}={path}. Use {other}"):
            load_sources(OmegaConf.create({key: str(path)}))


def test_patterns_that_match_nothing_are_told(archive: File, caplog: pytest.LogCaptureFixture) -> None:
    entry = {"path": str(archive("a")), "include": ["encodr"]}
    load_sources(OmegaConf.create({"init_from_nemo_model": {"a": entry}}))
    assert "init_from_nemo_model.a: include and exclude leave none" in caplog.text


def test_paths_are_looked_up_as_manifests_are(tmp_path: Path, archive: File, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive("a")
    monkeypatch.chdir(tmp_path)
    for setting in ("init_from_nemo_model=a.nemo", "init_from_ptl_ckpt={x: {path: a.nemo}}"):
        (source,) = read_sources(data_paths(compose(["size=tiny", setting])))
        assert source.path == str(path)
    (source,) = read_sources(data_paths(compose(["size=tiny", "init_from_nemo_model=data/x.nemo"])))
    assert source.path == str(Path(__file__).resolve().parents[3] / "data" / "x.nemo")


def test_the_file_is_part_of_the_contract(tmp_path: Path, archive: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of one name are two experiments; and a run that starts from one says so."""
    reads: list[str] = []
    monkeypatch.setattr(init_from, "load_nemo", lambda path: (reads.append(path), load_nemo(path))[1])
    for run_name, seed in (("x", 2), ("y", 3)):
        path = archive("a", seed=seed)
        digest = sha256_of(path)
        command = ["size=tiny", f"init_from_nemo_model={path}", f"output_dir={tmp_path / run_name}"]
        assert run(NEST, command) == 0
        assert reads.pop() == str(path) and not reads, "each is read once a run"
        index = json.loads((tmp_path / run_name / "recording.json").read_text())
        assert index["init_from"] == {"init_from_nemo_model": digest}
        log = (tmp_path / f"{run_name}.log").read_text()
        assert "init_from_nemo_model: 99 of the model's 99 entries from" in log
    folders = {"reference": "x", "candidate": "y", "out": "report"}
    assert compare_outputs([f"--{name}={tmp_path / folder}" for name, folder in folders.items()]) == 4
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["first_difference"]["tensor"].startswith("init_from.init_from_nemo_model")
