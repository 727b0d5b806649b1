"""Generators that NeMo and webdataset seed from the clock, seeded from the run instead; for both trainers.

| draws of              | in NeMo 3.0.0 from                                 | with `seeded_data`               |
|-----------------------|----------------------------------------------------|----------------------------------|
| tarred: order of tars | webdataset's `random.Random` of process and time   | one seeded by Python's generator |
| is_concat: which set  | NumPy's `RandomState` of the system, unless        | one seeded by NumPy's generator  |
|                       | `concat_sampling_seed` is given                    |                                  |
| use_lhotse: orders    | the system (`shard_seed: trng`, the default)       | `shard_seed: randomized`: `seed` |
| use_lhotse: buckets   | a thread fills them while they are drawn from      | `concurrent_bucketing: false`    |

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
    originals: list[tuple[Any, str, Any, Any]] = [(webdataset, "shuffle", webdataset.shuffle, SeededShuffle)]
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
        given = plain(section) if section else {}
        wanted: dict[str, Any] = {"shard_seed": "randomized"} if given.get("shard_seed", "trng") == "trng" else {}
        if given.get("use_bucketing") or given.get("bucket_duration_bins"):
            wanted |= {"concurrent_bucketing": False} if given.get("concurrent_bucketing", True) else {}
        for key, value in wanted.items() if given.get("use_lhotse") else ():
            OmegaConf.update(section, key, value, force_add=True)
            changes.append(f"model.{name}.{key}={value}, so that Lhotse repeats from the seed (seeded_data=false: not)")
    return changes
