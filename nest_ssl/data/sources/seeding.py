"""Generators that NeMo, webdataset and Lhotse seed from the clock, seeded from the run instead; for both trainers.

| source                            | what NeMo 3.0.0 draws from                                   | here, with `seeded_data`        |
|-----------------------------------|--------------------------------------------------------------|---------------------------------|
| tarred, the order of the shards   | webdataset's `random.Random`, of the process number and time | one seeded by Python's generator|
| is_concat, temperature or random  | NumPy's `RandomState` of the system, where                   | one seeded by NumPy's generator |
|                                   | `concat_sampling_seed` is not given                          |                                 |
| use_lhotse, the order of shards,  | the system's (`shard_seed: trng`, the default)               | `shard_seed: randomized`, which |
| shuffling, mixing                 |                                                              | follows from `seed`             |
| use_lhotse with buckets           | a thread that fills them while they are drawn from           | `concurrent_bucketing: false`   |

The draw happens when a pass over the data begins, so that each epoch and each worker has another order, and the same
one in a second run. Nothing is drawn where NeMo repeats by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from nest_ssl.config.section import plain

SEEDS = 2**31
INITIAL = 100  # shards that webdataset gathers before the first is drawn


class SeededShuffle:
    """webdataset's shuffle of so many shards at a time, from a generator that Python's seeds when a pass begins."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, shards: Iterator[Any]) -> Iterator[Any]:
        from webdataset.filters import _shuffle

        shuffled: Iterator[Any] = _shuffle(shards, self.size, INITIAL, rng=random.Random(random.getrandbits(64)))
        return shuffled


def drawn_seed(given: int | None) -> int:
    """The seed that is given, or one drawn from NumPy's global generator."""
    return int(np.random.randint(SEEDS)) if given is None else given


@contextmanager
def seeded_sources(concat_dataset: Any = None) -> Iterator[None]:
    """While this is open, what is built draws as the table says: webdataset's shuffles, and NeMo's `ConcatDataset`, if
    its class is given."""
    import webdataset

    names = ("temperature_generator", "random_generator") if concat_dataset else ()
    originals = [(webdataset, "shuffle", webdataset.shuffle, SeededShuffle)]
    for name in names:
        original = getattr(concat_dataset, name)
        originals.append((concat_dataset, name, staticmethod(original), staticmethod(_Seeded(original))))
    try:
        for owner, name, _, seeded in originals:
            setattr(owner, name, seeded)
        yield
    finally:
        for owner, name, original, _ in originals:
            setattr(owner, name, original)


class _Seeded:
    """A generator function of NeMo's that always has a seed (a class, so that it can be sent to a worker)."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, datasets: Any, **settings: Any) -> Any:
        return self.original(datasets, **{**settings, "seed": drawn_seed(settings.get("seed"))})


def seed_lhotse(cfg: DictConfig) -> list[str]:
    """Have Lhotse's sections of a whole configuration repeat from the seed; a line for each change."""
    changes = []
    for name in ("train_ds", "validation_ds"):
        section = cfg.model.get(name)
        if not (section and section.get("use_lhotse")):
            continue
        if plain(section).get("shard_seed", "trng") == "trng":
            OmegaConf.update(section, "shard_seed", "randomized", force_add=True)
            why = "Lhotse would draw its seed from the system: model.{}.shard_seed=randomized instead (seeded_data)"
            changes.append(why.format(name))
        if section.get("use_bucketing") or section.get("bucket_duration_bins") or section.get("bucket_batch_size"):
            if section.get("concurrent_bucketing", True):
                OmegaConf.update(section, "concurrent_bucketing", False, force_add=True)
                why = "a thread fills the buckets while they are drawn from: model.{}.concurrent_bucketing=false"
                changes.append(why.format(name) + " instead (seeded_data)")
    return changes
