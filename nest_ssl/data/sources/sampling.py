"""Lhotse's samplers over cuts, and the loader that batches them with noise (`use_lhotse`).

The sampler draws from generators of its own, of `shard_seed`. Building the loader seeds Python's, NumPy's and torch's
global generators with `seed` (0 if it is not given), as NeMo's does: before the model has its weights.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.common.data.lhotse.dataloader` and
`ssl_dataset.LhotseAudioNoiseDataset`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut, MonoCut
from lhotse.dataset import (
    AudioSamples,
    DynamicBucketingSampler,
    DynamicCutSampler,
    IterableDatasetWrapper,
    make_worker_init_fn,
)
from lhotse.dataset.dataloading import resolve_seed
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint
from lhotse.lazy import LazyFlattener
from lhotse.utils import fix_random_seed
from torch.utils.data import get_worker_info

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.data.batch import AudioNoiseBatch, Augmentor, UnmixedBatch
from nest_ssl.data.manifest import NoiseClip
from nest_ssl.data.noise import draw_noise
from nest_ssl.data.skipping import LoadFailure
from nest_ssl.data.sources.cuts import cuts_of


class CutsWithNoise(torch.utils.data.Dataset[AudioNoiseBatch]):
    """Makes a batch of cuts; those whose audio cannot be read are left out of it, as Lhotse does."""

    def __init__(self, clips: Sequence[NoiseClip], augmentor: Augmentor | None) -> None:
        self.clips, self.augmentor = clips, augmentor
        self.read = AudioSamples(fault_tolerant=True)

    def __getitem__(self, cuts: CutSet) -> AudioNoiseBatch:
        audio_BT, audio_len_B, read = self.read(cuts)
        noise_BT, noise_len_B = torch.zeros_like(audio_BT), audio_len_B
        if self.clips:
            drawn = [draw_noise(self.clips, cut.sampling_rate, cut.num_samples) for cut in read]
            noise_BT = torch.stack([noise_T for noise_T, _ in drawn]).float()
            noise_len_B = torch.tensor([length for _, length in drawn]).long()
        unmixed = UnmixedBatch(audio_BT, audio_len_B, noise_BT, noise_len_B)
        return self.augmentor(unmixed) if self.augmentor is not None else unmixed.mix(audio_len_B)


class Stream(IterableDatasetWrapper):  # type: ignore[misc]
    """Lhotse's stream of batches; a mistake of the user's leaves a worker as what it is, see `LoadFailure`."""

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except UserError as error:
            if get_worker_info() is None:
                raise
            return LoadFailure(error)


def lhotse_arguments(
    dataset: Dataset, section: dict[str, Any], items: CutsWithNoise, sample_rate: int, rank: int, world_size: int
) -> dict[str, Any]:
    """What makes a DataLoader of a section; seeds all generators.

    Args:
        dataset: the section's settings.
        section: the same as plain values, with Lhotse's defaults; `shuffle` among them.
        items: makes a batch of cuts.
        sample_rate: Hz; audio of another rate is resampled.
    """
    seed = resolve_seed(dataset.seed)
    fix_random_seed(seed)
    cuts, streams = cuts_of(section)
    streams = (streams or dataset.force_iterable_dataset) and not dataset.force_map_dataset
    if isinstance(dataset.channel_selector, int):
        cuts = cuts.map(partial(with_channel, channel=dataset.channel_selector))
    cuts = cuts.map(partial(resampled, rate=sample_rate), apply_fn=None)
    cuts = CutSet(LazyFlattener(cuts.map(with_alternatives, apply_fn=None)))
    cuts = cuts.filter(Lasting(dataset.min_duration, dataset.max_duration)).filter(passed)
    bins = duration_bins(dataset)
    if dataset.bucket_batch_size is not None and bins is not None:
        cuts = cuts.filter(Lasting(None, bins[-1]))  # what no bucket takes
        constraint: Any = FixedBucketBatchSizeConstraint(bins, dataset.bucket_batch_size)
    else:
        constraint = TimeConstraint(
            max_cuts=dataset.batch_size,
            max_duration=dataset.batch_duration,
            quadratic_duration=dataset.quadratic_duration,
        )
    common = {
        "constraint": constraint, "shuffle": section["shuffle"], "drop_last": dataset.drop_last,
        "shuffle_buffer_size": dataset.shuffle_buffer_size, "seed": section["shard_seed"],
        "rank": 0 if streams else rank, "world_size": 1 if streams else world_size,
    }  # fmt: skip
    if dataset.use_bucketing or dataset.bucket_duration_bins is not None or dataset.bucket_batch_size is not None:
        sampler: Any = DynamicBucketingSampler(
            cuts, num_buckets=dataset.num_buckets, duration_bins=bins, buffer_size=dataset.bucket_buffer_size,
            num_cuts_for_bins_estimate=dataset.num_cuts_for_bins_estimate,
            concurrent=section["concurrent_bucketing"], **common,
        )  # fmt: skip
    else:
        sampler = DynamicCutSampler(cuts, **common)
    if not streams:
        return {"dataset": items, "sampler": sampler}
    return {
        "dataset": Stream(dataset=items, sampler=sampler),
        "worker_init_fn": make_worker_init_fn(rank=rank, world_size=world_size, seed=seed),
        "persistent_workers": dataset.num_workers > 0,
    }


def duration_bins(dataset: Dataset) -> list[float] | None:
    """Where buckets end, in seconds: as given, or at even distances up to `max_duration`; None: Lhotse estimates."""
    if dataset.bucket_duration_bins is not None:
        return list(dataset.bucket_duration_bins)
    longest = dataset.max_duration
    if longest is None or longest == math.inf:
        return None
    shortest = dataset.min_duration if dataset.min_duration is not None and dataset.min_duration > 0 else 0.0
    bins: list[float] = np.linspace(shortest, longest, dataset.num_buckets + 1)[1:-1].tolist()
    return bins


class Lasting:
    """Whether a cut lasts so many seconds."""

    def __init__(self, shortest: float | None, longest: float | None) -> None:
        self.shortest = -1 if shortest is None else shortest
        self.longest = math.inf if longest is None else longest

    def __call__(self, cut: Cut) -> bool:
        return bool(self.shortest <= cut.duration <= self.longest)


def passed(cut: Cut) -> bool:
    """Whether a cut's line does not say that it is of no use (`validation_status`)."""
    status = cut.validation_status if isinstance(cut, MonoCut) and cut.has_custom("validation_status") else "pass"
    return bool(status == "pass")


def with_alternatives(cut: Cut) -> list[Cut]:
    """A cut, and once more for each other transcript of it (`alt_text`), with its audio as 16-bit samples in memory."""
    texts = (cut.custom or {}).get("alt_text")
    if texts is None:
        return [cut]
    held = cut.move_to_memory(audio_format="wav")
    return [cut, *(held.map_supervisions(lambda each: each) for _ in texts)]


def resampled(cut: Cut, rate: int) -> Cut:
    return cut.resample(rate)


def with_channel(cut: Cut, channel: int) -> Cut:
    return cut if cut.num_channels == 1 else cut.with_channels(channel)
