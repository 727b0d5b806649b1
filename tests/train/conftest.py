"""A tiny trainable model without data, and the files made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

from nest_ssl.config.compose import compose
from nest_ssl.train.checkpoint.nemo_archive import save_nemo
from nest_ssl.train.module import NestModule


@pytest.fixture
def tiny() -> Callable[..., NestModule]:
    """`tiny("model.encoder.n_layers=1", seed=0)`: the model of `size=tiny`."""

    def build(*overrides: str, seed: int = 0) -> NestModule:
        cfg = compose(["size=tiny", "run=full", *overrides]).model
        OmegaConf.update(cfg, "train_ds", None)
        OmegaConf.update(cfg, "validation_ds", None)
        torch.manual_seed(seed)
        return NestModule(cfg)

    return build


@pytest.fixture
def archive(tmp_path: Path, tiny: Callable[..., NestModule]) -> Callable[..., Path]:
    """`archive("a", *overrides, seed=0)`: the path of a `.nemo` file of that model."""

    def write(name: str, *overrides: str, seed: int = 0) -> Path:
        save_nemo(tiny(*overrides, seed=seed), path := tmp_path / f"{name}.nemo")
        return path

    return write


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: Callable[..., NestModule]) -> Callable[..., Path]:
    """`checkpoint("a", *overrides, seed=0)`: the path of a Lightning checkpoint of that model."""

    def write(name: str, *overrides: str, seed: int = 0) -> Path:
        trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        trainer.strategy.connect(tiny(*overrides, seed=seed))
        trainer.save_checkpoint(path := tmp_path / f"{name}.ckpt", weights_only=True)
        return path

    return write
