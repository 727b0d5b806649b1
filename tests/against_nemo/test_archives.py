"""Files that one side writes and the other reads: the same weights, settings and outputs, and the same start."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import train_nemo
import train_nest
from aligning import GENERATION, NARROW, ONE_PROCESS, RELEASE, STARTS, align
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nest_ssl.base.determinism import seed_all
from nest_ssl.base.errors import UserError
from nest_ssl.base.rng import rng_digests
from nest_ssl.config.compose import compose
from nest_ssl.config.strict import read_config
from nest_ssl.model.nest import NestModel
from nest_ssl.run.experiment import run
from nest_ssl.train.checkpoint import init_from
from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.nemo_archive import CONFIG, load_nemo, save_nemo
from nest_ssl.train.module import NestModule

TINY = ["size=tiny", NARROW, "run=full"]


def settings(*overrides: str) -> DictConfig:
    """The tiny model's whole configuration, everything random on, without data."""
    cfg = compose([*TINY, f"nemo={GENERATION}", *overrides])
    cfg.model.train_ds = cfg.model.validation_ds = None
    return cfg


def nemo_model(*overrides: str, seed: int) -> LightningModule:
    seed_all(seed)
    return train_nemo.build_model(settings(*overrides))


def nest_model(*overrides: str, seed: int) -> NestModule:
    seed_all(seed)
    return NestModule(settings(*overrides).model)


def write_checkpoint(model: LightningModule, path: Path) -> Path:
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def write(model: LightningModule, path: Path) -> Path:
    """Write a model in the way of its side and of the file's kind."""
    if path.suffix == ".ckpt":
        return write_checkpoint(model, path)
    save_nemo(model, path) if isinstance(model, NestModule) else model.save_to(str(path))
    return path


def assert_same_weights(reference: nn.Module, candidate: nn.Module) -> None:
    a, b = reference.state_dict(), candidate.state_dict()
    assert list(a) == list(b)
    assert [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])] == []


def outputs(model: nn.Module, training: bool) -> list[Tensor]:
    """What the model makes of two utterances and their noise, with all its own draws from one seed."""
    generator = torch.Generator().manual_seed(5)
    clean, noisy = (torch.rand(2, 24_000, generator=generator) - 0.5 for _ in range(2))
    length = torch.tensor([24_000, 17_777])
    model.train(training)
    seed_all(1)  # NumPy's too: NeMo 2.4 draws its masks from it
    with torch.no_grad():
        return list(model.forward(
            input_signal=clean, input_signal_length=length, noisy_input_signal=noisy, noisy_input_signal_length=length,
            apply_mask=True,
        ))  # fmt: skip


def assert_same_outputs(reference: nn.Module, candidate: nn.Module) -> None:
    for training in (False, True):
        pairs = zip(outputs(reference, training), outputs(candidate, training), strict=True)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs), f"training={training}"


def restored_by_nemo(path: Path) -> LightningModule:
    cls = train_nemo.load_model_class()
    return cls.restore_from(str(path)) if path.suffix == ".nemo" else cls.load_from_checkpoint(str(path))


def restored_by_us(path: Path) -> NestModel:
    config, state_dict = load_nemo(path) if path.suffix == ".nemo" else load_checkpoint(path)
    model = NestModel(config, GENERATION)
    model.load_state_dict(state_dict)
    return model


@pytest.mark.parametrize("name", ["a.nemo", "a.ckpt"])
@pytest.mark.parametrize("writer", [nemo_model, nest_model])
def test_both_read_what_either_wrote(tmp_path: Path, writer: Callable[..., LightningModule], name: str) -> None:
    source = writer(seed=3)
    with torch.no_grad():
        for tensor in source.state_dict().values():  # no weight is what some seed gives
            tensor.add_(torch.ones_like(tensor) if not tensor.is_floating_point() else 0.01 * torch.rand_like(tensor))
    path = write(source, tmp_path / name)
    reference, candidate = restored_by_nemo(path), restored_by_us(path)
    assert_same_weights(source, reference)
    assert_same_weights(reference, candidate)
    assert_same_outputs(reference, candidate)


def test_the_outputs_can_differ() -> None:
    """The comparison above can fail: one bias of the last layer is enough."""
    one, other = nest_model(seed=3), nest_model(seed=3)
    assert_same_outputs(one, other)
    with torch.no_grad():
        bias = next(p for n, p in other.named_parameters() if n.startswith("decoder") and p.ndim == 1)
        bias[0] += 1e-6
    with pytest.raises(AssertionError):
        assert_same_outputs(one, other)


def test_settings_are_written_as_nemo_writes_them(tmp_path: Path) -> None:
    written = {}
    for side, model in (("nemo", nemo_model(seed=3)), ("nest", nest_model(seed=3))):
        with tarfile.open(write(model, tmp_path / f"{side}.nemo")) as archive:
            written[side] = archive.extractfile(f"./{CONFIG}").read().decode()  # type: ignore[union-attr]
    reference, candidate = (text.replace(f"nemo_version: {v}", "") for text, v in zip(
        written.values(), (RELEASE, "3.0.0"), strict=True))  # fmt: skip
    assert reference == candidate


def test_nemo_keeps_our_settings_when_it_writes_again(tmp_path: Path) -> None:
    candidate = write(nest_model(seed=3), tmp_path / "candidate.nemo")
    again = write(restored_by_nemo(candidate), tmp_path / "again.nemo")
    assert load_nemo(again)[0] == load_nemo(candidate)[0]


# --- starting from them


def initialised(path: dict[str, Path], key: str, entries: dict[str, dict[str, Any]] | None) -> dict[str, Any]:
    """The `init_from_*` setting: a path, or entries whose `path` is the name of a file."""
    named = {n: {**e, "path": str(path[e["path"]])} for n, e in (entries or {}).items()}
    return {key: named if entries is not None else str(path["a"])}


WAYS: dict[str, dict[str, dict[str, Any]] | None] = {
    "all": None,
    "no entries": {},
    "one": {"x": {"path": "a"}},
    "include": {"x": {"path": "a", "include": ["encoder"]}},
    "include several": {"x": {"path": "a", "include": ["layers.1", "decoder", "nothing"]}},
    "include none": {"x": {"path": "a", "include": []}},
    "exclude": {"x": {"path": "a", "exclude": ["decoder", "norm"]}},
    "both": {"x": {"path": "a", "include": ["encoder"], "exclude": ["layers.0", "conv"]}},
    "in order": {"x": {"path": "a"}, "y": {"path": "b", "include": ["encoder"], "exclude": ["pre_encode"]}},
    "a deeper model": {"x": {"path": "deep", "exclude": ["layers.0"]}},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Files of both kinds, of both writers."""
    folder = tmp_path_factory.mktemp("sources")
    models = {"a": nemo_model(seed=3), "b": nest_model(seed=4), "deep": nemo_model("model.encoder.n_layers=3", seed=5)}
    kinds = {"init_from_nemo_model": "nemo", "init_from_ptl_ckpt": "ckpt"}
    return {
        key: {name: write(model, folder / f"{name}.{kind}") for name, model in models.items()}
        for key, kind in kinds.items()
    }


@pytest.mark.parametrize("start", WAYS)
@pytest.mark.parametrize("key", ["init_from_nemo_model", "init_from_ptl_ckpt"])
def test_the_same_start(files: dict[str, dict[str, Path]], key: str, start: str) -> None:
    built, digests = [], []
    for side in (train_nemo, train_nest):
        cfg = settings()
        cfg.update(initialised(files[key], key, WAYS[start]))
        before = OmegaConf.to_yaml(cfg)
        seed_all(42)
        built.append(side.build_model(cfg))
        digests.append(rng_digests())
        assert OmegaConf.to_yaml(cfg) == before
    assert_same_weights(*built)
    assert digests[0] == digests[1]


def test_another_class_of_nemo_with_the_same_parts(tmp_path: Path) -> None:
    parent = train_nemo.load_model_class().__base__
    assert parent.__name__ == init_from.CLASSES[1]
    seed_all(3)
    write(parent(cfg=settings().model), tmp_path / "a.nemo")
    built, digests = [], []
    for side in (train_nemo, train_nest):
        seed_all(42)
        built.append(side.build_model(OmegaConf.merge(settings(), {"init_from_nemo_model": str(tmp_path / "a.nemo")})))
        digests.append(rng_digests())
    assert_same_weights(*built)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("side", [train_nemo, train_nest], ids=["nemo", "nest"])
def test_another_shape_is_one_line(tmp_path: Path, side: Any) -> None:
    path = write(nest_model("model.num_classes=64", seed=3), tmp_path / "a.nemo")
    with pytest.raises(UserError, match="weights of another shape"):
        side.build_model(OmegaConf.merge(settings(), {"init_from_nemo_model": str(path)}))


def test_nemo_refuses_what_we_refuse(files: dict[str, dict[str, Path]]) -> None:
    """Two sources (even if one is null), and a list: mistakes there and here."""
    path = str(files["init_from_nemo_model"]["a"])
    for wrong, error in (
        ({"init_from_nemo_model": path, "init_from_ptl_ckpt": None}, ValueError),
        ({"init_from_nemo_model": [path]}, TypeError),
        ({"init_from_nemo_model": {"a": {"path": path, "include": None}}}, TypeError),
    ):
        cfg = OmegaConf.create(wrong)
        with pytest.raises(UserError, match="init_from"):
            read_config(["size=tiny", *(f"{key}={json.dumps(value)}".replace('"', "") for key, value in wrong.items())])
        with pytest.raises(error):
            nemo_model(seed=1).maybe_init_from_pretrained_checkpoint(cfg)


def test_nemo_alone_opens_no_checkpoint_of_its_own(files: dict[str, dict[str, Path]]) -> None:
    """Why `train_nemo.py` names OmegaConf's classes to torch. When this fails, that help is no longer needed."""
    cfg = OmegaConf.create({"init_from_ptl_ckpt": str(files["init_from_ptl_ckpt"]["a"])})
    with pytest.raises(pickle.UnpicklingError, match="omegaconf"):
        nemo_model(seed=1).maybe_init_from_pretrained_checkpoint(cfg)


def test_nemo_never_sees_a_harmful_archive(tmp_path: Path, files: dict[str, dict[str, Path]]) -> None:
    from nest_ssl.train.checkpoint.nemo_archive import write_nemo

    config, state_dict = load_nemo(files["init_from_nemo_model"]["a"])
    config["encoder"]["_target_"] = "os.mkdir"
    write_nemo(config, state_dict, path := tmp_path / "evil.nemo")
    with pytest.raises(UserError, match="_target_"):
        run(
            train_nemo.NEMO,
            [*TINY, f"nemo={GENERATION}", f"init_from_nemo_model={path}", f"output_dir={tmp_path / 'out'}"],
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.nemo"]


# --- recordings


def align_from(folder: Path, *overrides: str) -> tuple[int, dict[str, Any]]:
    settings = [*TINY, *STARTS, *ONE_PROCESS, "model.train_ds.batch_size=4", "save_steps=1", "batches=2"]
    return align(folder, *settings, "overwrite=true", *overrides)


@pytest.mark.parametrize("key", ["init_from_nemo_model", "init_from_ptl_ckpt"])
def test_training_from_a_source_is_identical(tmp_path: Path, files: dict[str, dict[str, Path]], key: str) -> None:
    entries = f"{{x: {{path: {files[key]['a']}, exclude: [decoder]}}, y: {{path: {files[key]['b']}, include: [norm]}}}}"
    for value in (files[key]["a"], entries):
        code, report = align_from(tmp_path, f"{key}={value}")
        assert report["first_difference"] is None and code == 0 and report["verdict"] == "identical", report["rungs"]


def test_planted_faults_are_named(
    tmp_path: Path, files: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive's model not built, so that its draws are missing; the patterns not heeded."""
    path = files["init_from_nemo_model"]["a"]
    entry = f"init_from_nemo_model={{x: {{path: {path}, exclude: [decoder]}}}}"
    with monkeypatch.context() as fault:
        fault.setattr(init_from, "_check_archive", lambda *_: None)
        fault.setattr(init_from, "load_nemo", lambda path: (None, load_nemo(path)[1]))
        code, report = align_from(tmp_path, entry, "save_steps=0", "batches=1")
    first = report["first_difference"]
    assert code == 1 and first["rung"] == "draws" and "model_construction" in json.dumps(first), first
    with monkeypatch.context() as fault:
        fault.setattr(init_from.Source, "takes", lambda self, name: True)
        code, report = align_from(tmp_path, entry, "save_steps=0", "batches=1")
    first = report["first_difference"]
    assert code == 1 and first["rung"] == "initial_weights" and "decoder" in json.dumps(first), first
