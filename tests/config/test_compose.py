"""Every spelling that people use is accepted; every mistake is one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import CONF, compose, data_paths
from nest_ssl.run.preflight import adapt_to_machine

NEMO_STYLE = """
name: my-nest
model:
  sample_rate: 16000
  num_classes: 8192
  train_ds:
    manifest_filepath: ???
    noise_manifest: ???
    sample_rate: ${model.sample_rate}
    shuffle: true
  encoder: {_target_: nemo.collections.asr.modules.ConformerEncoder, n_layers: 17, d_model: 512}
  optim: {name: adamw, lr: 5.0}
trainer: {devices: -1, accelerator: cpu, strategy: ddp_find_unused_parameters_true, sync_batchnorm: true}
exp_manager: {exp_dir: null, resume_if_exists: true}
"""


@pytest.mark.parametrize(("given", "meant"), [("nan", "nan"), ("NaN", "nan"), ("zero", "zero")])
def test_a_batch_without_a_masked_token(given: str, meant: str) -> None:
    assert compose([f"no_masked_token={given}"]).no_masked_token == meant


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("seed=7", "seed", 7),
        ("trainer.limit_val_batches=2", "trainer.limit_val_batches", 2),  # not in the file
        ("save_steps=0,1,2", "save_steps", "0,1,2"),
        ("save_steps=[0,1]", "save_steps", [0, 1]),
        ("model.optim.betas=[0.8,0.9]", "model.optim.betas", [0.8, 0.9]),
        (
            "model.train_ds.manifest_filepath=/a b/x.json,/y.json",
            "model.train_ds.manifest_filepath",
            "/a b/x.json,/y.json",
        ),
        ("output_dir=it's", "output_dir", "it's"),
        ("size=tiny", "model.encoder.d_model", 64),
    ],
)
def test_overrides_with_any_plus(plus: str, override: str, key: str, expected: object) -> None:
    assert OmegaConf.select(compose([plus + override]), key) == expected


@pytest.mark.parametrize(
    ("size", "d_model", "layers", "heads", "xscaling"),
    [("tiny", 64, 2, 4, True), ("small", 176, 16, 4, True), ("medium", 256, 16, 4, True), ("large", 512, 17, 8, True),
     ("xlarge", 1024, 24, 8, False), ("xxlarge", 1024, 42, 8, False)],
)  # fmt: skip
def test_sizes(size: str, d_model: int, layers: int, heads: int, xscaling: bool) -> None:
    encoder = compose([f"size={size}"]).model.encoder
    assert (encoder.d_model, encoder.n_layers, encoder.n_heads, encoder.xscaling) == (d_model, layers, heads, xscaling)


def test_quick_is_quiet_and_full_is_random() -> None:
    quick, full = compose([]), compose(["run=full"])
    assert quick.model.preprocessor.dither == 0 and quick.model.encoder.dropout == 0
    assert quick.model.train_ds.batch_augmentor.prob == 0 and quick.trainer.limit_train_batches == 2
    assert full.model.preprocessor.dither > 0 and full.model.encoder.dropout_att == 0.1
    assert full.model.train_ds.batch_augmentor.prob == 0.5 and full.model.train_ds.shuffle


def test_batches_is_the_length_of_training() -> None:
    trainer = compose(["batches=7"]).trainer
    assert (trainer.max_steps, trainer.limit_train_batches, trainer.max_epochs) == (7, 7, 7)


@pytest.mark.parametrize(
    "override", ["trainer.max_steps=0", "trainer.limit_train_batches=0", "+trainer.max_epochs=2", "trainer.max_steps=9"]
)
def test_two_lengths_of_training_on_the_command_line_contradict_each_other(override: str) -> None:
    with pytest.raises(UserError, match=f"how long to train: {override.lstrip('+')} and batches=1. Leave one of them"):
        compose(["batches=1", override])


@pytest.mark.parametrize(
    "override",
    ["trainer.max_steps=7", "trainer.max_steps=-1", "trainer.max_epochs=null", "trainer.limit_train_batches=1.0"],
)
def test_lengths_that_agree_are_one(override: str) -> None:
    """And what a file says is no contradiction: `batches=7` is there to shorten a recipe."""
    trainer = compose([override, "batches=7"]).trainer
    assert (trainer.max_steps, trainer.limit_train_batches, trainer.max_epochs) == (7, 7, 7)
    trainer = compose(["trainer.accumulate_grad_batches=2", "batches=7", "trainer.max_steps=4"]).trainer
    assert (trainer.max_steps, trainer.limit_train_batches, trainer.max_epochs) == (4, 7, 7)


@pytest.mark.parametrize("override", ["size=huge", "tiny", "=3", "trainer={"])
def test_wrong_overrides(override: str) -> None:
    with pytest.raises(UserError):
        compose([override])


def test_nemos_own_yaml_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "nest.yaml").write_text(NEMO_STYLE)
    paths = ["model.train_ds.manifest_filepath=/a.json", "model.train_ds.noise_manifest=null"]
    cfg = compose([*paths, "size=tiny", "run=quick"], tmp_path, "nest.yaml")
    assert cfg.name == "my-nest" and cfg.seed == 42 and cfg.model.encoder.d_model == 64
    assert cfg.model.train_ds.shuffle is False


def test_a_value_that_nemos_yaml_leaves_open_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "nest.yaml").write_text(NEMO_STYLE)
    with pytest.raises(UserError, match="model.train_ds.manifest_filepath=..."):
        compose([], tmp_path, "nest")


def test_many_gpu_settings_are_adapted_and_told(tmp_path: Path) -> None:
    (tmp_path / "nest.yaml").write_text(NEMO_STYLE)
    cfg = compose(["model.train_ds.manifest_filepath=a", "model.train_ds.noise_manifest=null"], tmp_path, "nest")
    notes = adapt_to_machine(cfg, cuda_devices=0)
    assert (cfg.trainer.devices, cfg.trainer.strategy, cfg.trainer.sync_batchnorm) == (1, "auto", False)
    assert len(notes) == 3 and adapt_to_machine(cfg, cuda_devices=0) == []


def test_gpu_settings_stay_where_there_are_gpus() -> None:
    cfg = compose(["trainer.devices=-1", "trainer.strategy=ddp", "trainer.accelerator=gpu"])
    assert adapt_to_machine(cfg, cuda_devices=2) == []


def test_manifests_are_found_from_here_then_from_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("")
    cfg = data_paths(compose(["model.train_ds.manifest_filepath=mine.json"]))
    assert cfg.model.train_ds.manifest_filepath == str(tmp_path / "mine.json")
    assert cfg.model.validation_ds.manifest_filepath == str(CONF.parent / "data/dummy_ssl/val_manifest.json")


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.yaml"):
        compose([], tmp_path, "nowhere")
