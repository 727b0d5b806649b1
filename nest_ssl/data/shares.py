"""How much of a section's data each of several ranks has in an epoch.

Of a plain manifest Lightning gives every rank the same number. Tar files are shared out whole, each bucket's by
themselves, so that ranks may have other numbers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from nest_ssl.config.data import Dataset
from nest_ssl.data.corpus import Corpora, sets_of, within_limits


class Share(NamedTuple):
    """What a rank has in an epoch; infinite where it shows only when the batches are made."""

    utterances: float
    batches: float


def shares_of(dataset: Dataset, corpora: Corpora, ranks: int) -> list[Share]:
    """The share of each rank.

    Raises:
        UserError: a tar file that cannot be read.
    """
    if dataset.use_lhotse:
        return [Share(math.inf, math.inf)] * ranks
    sets = _sets_within_limits(dataset, corpora)
    if dataset.is_tarred and not dataset.is_concat and ranks > 1:
        from nest_ssl.data.sources.tarred import shares_of_ranks

        tars = [part.tars for part in sets_of(dataset)[0]]
        return [Share(*share) for share in shares_of_ranks(dataset, sets[0], tars, ranks)]
    if dataset.is_tarred or ranks == 1:  # each rank draws as many from a mixture of tar files as all of it has
        each = corpora.in_an_epoch(dataset)
    elif dataset.is_concat:
        each = int(sum(len(entries) // ranks for (entries,) in sets) * dataset.concat_sampling_scale)
    else:  # PyTorch 2 `torch.utils.data.DistributedSampler` (``drop_last=False``)
        each = math.ceil(corpora.in_an_epoch(dataset) / ranks)
    whole = math.floor if dataset.drop_last else math.ceil
    return [Share(each, whole(each / (dataset.batch_size or 1)))] * ranks


def _sets_within_limits(dataset: Dataset, corpora: Corpora) -> list[list[Any]]:
    """The entries of each part of each set."""
    return [[within_limits([corpora.speech(path) for path in part.manifests], dataset)[0] for part in parts]
            for parts in sets_of(dataset)]  # fmt: skip


def first_without_any(dataset: Dataset, corpora: Corpora, ranks: int, passes: float) -> tuple[int, int, int] | None:
    """The first pass (from 0), rank and loader worker that has items of a mixture of manifests to make and no utterance
    to make them of; None where each has one.

    Workers begin each pass with the whole; without them what is left of the sets is shared out once more in each pass,
    see `sources.mixed.Mixture`.

    Args:
        passes: how many there will be.
    """
    if not dataset.is_concat or dataset.is_tarred or dataset.use_lhotse:
        return None
    whole, workers = [len(entries) for (entries,) in _sets_within_limits(dataset, corpora)], dataset.num_workers
    length = int(sum(size // ranks for size in whole) * dataset.concat_sampling_scale)
    for rank in range(ranks):
        sizes, number = whole, 0
        while number < (1 if workers else passes):
            before = sizes
            sizes = [size // ranks if rank < ranks - 1 else size - (ranks - 1) * (size // ranks) for size in sizes]
            for worker in range(min(workers or 1, length)):
                if not any(len(range(worker, size, workers or 1)) for size in sizes):
                    return number, rank, worker
            if sizes == before:  # and so they stay
                break
            number += 1
    return None
