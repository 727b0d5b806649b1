"""What differs between two trainers under test; everything else of a run is the same code for both."""

from __future__ import annotations

import importlib.metadata
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command line is read before any of this is imported
    from lightning.pytorch import LightningModule, Trainer
    from omegaconf import DictConfig

    from nest_ssl.data.corpus import Corpora
    from nest_ssl.train.checkpoint.init_from import Loaded


@dataclass(frozen=True)
class Inputs:
    """What was read while it was checked, so that nothing is read twice.

    Args:
        sources: the weights to start from; None: whoever needs them reads them.
        corpora: the manifests; None alike.
    """

    sources: list[Loaded] | None = None
    corpora: Corpora | None = None


@dataclass(frozen=True)
class Subject:
    """A trainer under test.

    Args:
        name: what to call it; also its default output folder.
        package: the distribution, its version is recorded.
        load: imports what the model needs, before anything is seeded.
        build_model: makes the model from the whole configuration (data paths absolute), the Trainer and the inputs.
        keeps_experiments: whether `exp_manager` has effect: checkpoints, resuming, logs.
        find_version: says the version where it is not that of the installed distribution.
        skips_bad_audio: whether it can go on without audio files that cannot be used (`bad_audio=skip`). Its model then
            has an attribute `skipped`.
    """

    name: str
    package: str
    load: Callable[[], Any]
    build_model: Callable[[DictConfig, Trainer, Inputs], LightningModule]
    keeps_experiments: bool = False
    skips_bad_audio: bool = False
    find_version: Callable[[], str | None] = lambda: None

    def version(self) -> str:
        """The version that is recorded."""
        return self.find_version() or importlib.metadata.version(self.package)


class PythonsGenerator:
    """Python's own generator, as the part of `random.Random` that features and their masks draw from."""

    def random(self) -> float:
        """A number from 0 to 1."""
        return random.random()

    def randint(self, low: int, high: int) -> int:
        """A whole number from low to high."""
        return random.randint(low, high)


def draw_from_python(model: LightningModule) -> None:
    """Have Python's generator, which is seeded, recorded and restored, say which spectra are cut off
    (`nb_augmentation_prob`), and draw some masks, in either trainer. NeMo has generators of its own for it, which the
    clock seeds."""
    for module in model.modules():
        if hasattr(module, "_rng"):
            module._rng = PythonsGenerator()  # type: ignore[assignment]
