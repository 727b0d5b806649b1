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
from nest_ssl.run.subject import Inputs, Subject, seed_narrow_band

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from omegaconf import DictConfig


def load_model_class() -> Any:
    """The port's model class."""
    from nest_ssl.train.module import NestModule

    return NestModule


def build_model(cfg: DictConfig, trainer: Trainer | None = None, inputs: Inputs | None = None) -> LightningModule:
    """The port's model, loaders and optimizer from NeMo's own `model` section, and what `init_from_*` names."""
    from nest_ssl.data.skipping import SkippedAudio
    from nest_ssl.train.checkpoint.init_from import init_from_pretrained, loading_sources

    read = inputs or Inputs()
    skipped = SkippedAudio() if cfg.bad_audio == "skip" else None
    model = load_model_class()(cfg.model, cfg.nemo, cfg.no_masked_token, skipped, read.corpora, cfg.seeded_data)
    seed_narrow_band(model, cfg.seed)
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
