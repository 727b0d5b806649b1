"""Train our own NEST and record it; `train_nemo.py` is its twin.

python scripts/train_nest.py size=tiny save_steps=0,1,2 batches=3 output_dir=outputs/nest overwrite=true
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # in an environment of one's own it need not be installed
from nest_ssl.base.errors import run_command
from nest_ssl.cli.train import train
from nest_ssl.run.subject import Inputs, Subject, draw_from_python

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from omegaconf import DictConfig


def load_model_class(cfg: DictConfig | None = None) -> Any:
    """The port's class for NeMo's that `model.target` names, and for `numerics`."""
    from nest_ssl.config.schema import class_of
    from nest_ssl.train.fast import FAST_MODULES
    from nest_ssl.train.module import MODULES

    modules = FAST_MODULES if cfg and cfg.get("numerics") == "fast" else MODULES
    return modules[class_of(cfg.model.get("target") if cfg else None)]


def build_model(cfg: DictConfig, trainer: Trainer | None = None, inputs: Inputs | None = None) -> LightningModule:
    """The port's model, loaders and optimizer from NeMo's own `model` section, and what `init_from_*` names."""
    from nest_ssl.data.skipping import SkippedAudio
    from nest_ssl.kernels.available import load
    from nest_ssl.train.checkpoint.init_from import init_from_pretrained, loading_sources

    read = inputs or Inputs()
    skipped = SkippedAudio() if cfg.bad_audio == "skip" else None
    ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    settings = (cfg.no_masked_token, skipped, read.corpora, cfg.seeded_data, *ranks)
    if trainer and trainer.strategy.root_device.type == "cpu":
        load()
    graphs = {"cuda_graphs": True} if cfg.get("cuda_graphs") else {}
    model = load_model_class(cfg)(cfg.model, cfg.nemo, *settings, **graphs)
    if cfg.seeded_data:
        draw_from_python(model)
    with loading_sources(cfg):
        init_from_pretrained(model, cfg, read.sources)
    return model


NEST = Subject(
    name="nest",
    package="nest-ssl",
    load=load_model_class,
    build_model=build_model,
    keeps_experiments=True,
    skips_bad_audio=True,
)

if __name__ == "__main__":
    run_command(lambda: train(NEST))
