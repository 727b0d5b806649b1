"""Several data sets as one: taken by turns, drawn from, or one after another.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.common.data.dataset.ConcatDataset` and
`audio_to_text.RandomizedChainDataset`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ChainDataset, Dataset, IterableDataset, Subset, get_worker_info

from nest_ssl.config.data import Dataset as Section
from nest_ssl.data.sources.seeding import drawn_seed

SYNCED_SEED = 0  # of the order of buckets, the same in every process


class Mixture(IterableDataset[Any]):
    """One item at a time of one of several data sets, until there were as many as all have together (`is_concat`).

    A set that has ended begins again. NeMo's own bookkeeping is kept where it can be seen: a pass cuts the sets to the
    part of the process and the worker, and the next pass in the same process cuts what is left of them.

    Args:
        datasets: all with a length and an index, or all streams with a length.
        settings: the `concat_` keys.
        rank, world_size: of the process; sets with an index are shared out.
        seeded: draw a seed where none is given, see `seeding.py`; else the system's.
    """

    def __init__(
        self, datasets: Sequence[Any], settings: Section, rank: int = 0, world_size: int = 1, seeded: bool = True
    ) -> None:
        self.datasets, self.settings, self.seeded = list(datasets), settings, seeded
        self.rank, self.world_size, self.cuts = rank, world_size, 0
        self.streams = isinstance(datasets[0], IterableDataset)
        length = sum(len(part) if self.streams else len(part) // world_size for part in datasets)
        scale = settings.concat_sampling_scale
        self.length = length if scale == 1 else int(length * scale)

    def __len__(self) -> int:
        return self.length

    def state_dict(self) -> dict[str, Any]:
        """What passes in this process leave behind: how often the sets were cut, and the places in them."""
        return {"cuts": self.cuts, "places": [place_in(part) for part in self.datasets]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the sets of a mixture that has made no pass to that state."""
        for _ in range(state["cuts"]):
            self._cut(0, 1)
        for part, place in zip(self.datasets, state["places"], strict=True):
            if place is not None:
                part.load_state_dict(place)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if not self.streams:
            self._cut(first, step)
        passes = [self._begin(part) for part in self.datasets]
        left, choices = len(range(first, self.length, step)), self._choices()
        while left:
            chosen = next(choices)
            try:
                item = next(passes[chosen])
            except StopIteration:
                passes[chosen] = self._begin(self.datasets[chosen])
                continue
            left -= 1
            yield item if self.streams else self.datasets[chosen][item]

    def _cut(self, first: int, step: int) -> None:
        self.datasets = [self.own_part(part, first, step) for part in self.datasets]
        self.cuts += 1

    def own_part(self, dataset: Any, first: int, step: int) -> Subset[Any]:
        share = len(dataset) // self.world_size
        end = len(dataset) if self.rank == self.world_size - 1 else (self.rank + 1) * share
        return Subset(dataset, range(self.rank * share + first, end, step))

    def _begin(self, dataset: Any) -> Iterator[Any]:
        """A pass over a set; in drawn order for one with an index, which is asked for."""
        if self.streams:
            return iter(dataset)
        indices = np.arange(len(dataset))
        if self.settings.concat_shuffle:
            np.random.shuffle(indices)
        return iter(indices)

    def _choices(self) -> Iterator[int]:
        """Which set the next item is of."""
        settings = self.settings
        if settings.concat_sampling_technique in (None, "round-robin"):
            return itertools.cycle(range(len(self.datasets)))
        if settings.concat_sampling_technique == "temperature":
            lengths = [len(part) for part in self.datasets]
            shares = np.power(np.array(lengths) / np.sum(lengths), 1 / settings.concat_sampling_temperature)
            shares = shares / np.sum(shares)
        else:
            shares = settings.concat_sampling_probabilities or [1 / len(self.datasets)] * len(self.datasets)
        seed = settings.concat_sampling_seed
        generator = np.random.RandomState(drawn_seed(seed) if self.seeded else seed)
        return (int(generator.choice(np.arange(len(self.datasets)), p=shares)) for _ in itertools.count())


class RandomOrderChain(ChainDataset):
    """Streams one after another, in an order that is drawn for each pass; each is cut off at its own length."""

    def __init__(self, datasets: Sequence[Dataset[Any]], seed: int) -> None:
        super().__init__(list(datasets))
        self.parts: list[Any] = list(datasets)
        self.generator = np.random.RandomState(seed)

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator that draws the order, as builtins."""
        name, words, *rest = self.generator.get_state(legacy=True)
        return {"generator": [str(name), [int(word) for word in words], *rest]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        name, words, *rest = state["generator"]
        self.generator.set_state((name, np.array(words, np.uint32), *rest))

    def __iter__(self) -> Iterator[Any]:
        for number in self.generator.permutation(len(self.parts)):
            dataset = self.parts[number]
            for count, item in enumerate(dataset, start=1):
                yield item
                if count >= len(dataset):
                    break


def place_in(dataset: Any) -> dict[str, Any] | None:
    """The state of a data set that has one."""
    place: dict[str, Any] | None = dataset.state_dict() if hasattr(dataset, "state_dict") else None
    return place


def chain(buckets: Sequence[Dataset[Any]], strategy: str, rank: int = 0) -> Dataset[Any]:
    """The buckets of a tarred set one after another, in the order that `bucketing_strategy` asks for."""
    if len(buckets) == 1:
        return buckets[0]
    if strategy == "fixed_order":
        return ChainDataset(buckets)
    seed = SYNCED_SEED if strategy == "synced_randomized" else random.randint(0, 30_000) + rank
    return RandomOrderChain(buckets, seed)
