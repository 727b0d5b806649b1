"""Train NVIDIA NeMo's NEST and record it. Nothing else here imports nemo; `train_nest.py` is its twin.

python scripts/train_nemo.py size=tiny save_steps=0,1,2 batches=3 output_dir=outputs/nemo overwrite=true
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # in an environment of one's own it need not be installed
from nest_ssl.base.errors import UserError, run_command
from nest_ssl.cli.train import train
from nest_ssl.run.subject import Inputs, Subject, draw_from_python

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from omegaconf import DictConfig


def checkout() -> str | None:
    """The version of the checkout that NEMO_SOURCE names, which then is what is imported; None: the installed NeMo.

    Raises:
        UserError: it names no checkout of NeMo.
    """
    if not (source := os.environ.get("NEMO_SOURCE")):
        return None
    facts = Path(source).resolve() / "nemo" / "package_info.py"
    if not facts.is_file():
        raise UserError("no checkout of NeMo", f"NEMO_SOURCE={source}", "Give the folder that has nemo/ in it.")
    sys.path[:] = dict.fromkeys([str(facts.parents[1]), *sys.path])  # first, and once
    numbers = dict(re.findall(r"^(MAJOR|MINOR|PATCH) *= *(\d+)", facts.read_text(encoding="utf-8"), re.MULTILINE))
    return ".".join(numbers.get(part, "0") for part in ("MAJOR", "MINOR", "PATCH")) + "+source"


def load_model_class(cfg: DictConfig | None = None) -> Any:
    """NeMo's own class that `model.target` names (importing it takes seconds)."""
    checkout()
    from nemo.collections.asr.models import ssl_models

    from nest_ssl.config.schema import class_of

    return getattr(ssl_models, class_of(cfg.model.get("target") if cfg else None))


def build_model(cfg: DictConfig, trainer: Trainer | None = None, inputs: Inputs | None = None) -> LightningModule:
    """NeMo's own model, loaders and optimizer from NeMo's own `model` section, and what `init_from_*` names."""
    from nemo.collections.common.data.dataset import ConcatDataset

    from nest_ssl.data.sources.seeding import seeded_sources
    from nest_ssl.train.checkpoint.init_from import loading_sources

    with seeded_sources(ConcatDataset) if cfg.seeded_data else nullcontext():
        model = load_model_class(cfg)(cfg=cfg.model, trainer=trainer)
    if cfg.seeded_data:
        draw_from_python(model)
    with loading_sources(cfg):
        model.maybe_init_from_pretrained_checkpoint(cfg.copy())  # it takes what it has read out of the configuration
    return model


NEMO = Subject(
    name="nemo", package="nemo_toolkit", load=load_model_class, build_model=build_model, find_version=checkout
)

if __name__ == "__main__":
    run_command(lambda: train(NEMO))
