"""What is in a manifest, and what batches it gives: `nest-ssl data inspect`.

Lengths are the manifest's; where it has none, the file's. Batches are those of a plain loader, in the manifest's order
or, shuffled, in the one that several processes have in their first epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from torch.utils.data import DistributedSampler

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.data.audio import Decoding
from nest_ssl.data.check import bad_files
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import parts_of

ANY_RATE = 16_000  # Hz; whether a file can be read does not depend on what it is resampled to
Seconds = np.ndarray[Any, np.dtype[np.float64]]
Piece = tuple[str, float, float | None]  # of a file: from which second on, and how many
BARS, WIDTH = 12, 40  # of the histogram: how many, and characters in the longest


@dataclass(frozen=True)
class Plan:
    """The batches of one process in an epoch.

    Args:
        batches: how many.
        seconds: of audio in them.
        padded: seconds with the padding up to the longest of each batch.
        worst: the indices of the utterances in the batch with most seconds, padding included; and those seconds.
    """

    batches: int
    seconds: float
    padded: float
    worst: tuple[Sequence[int], float]

    @property
    def padding(self) -> float:
        """The part of what is computed that is padding, 0 to 1."""
        return 1 - self.seconds / self.padded if self.padded else 0.0


@dataclass(frozen=True)
class Inspection:
    """What was found: utterances within the limits and their seconds [N], problems, and the batches of each rank."""

    entries: Sequence[Entry]
    seconds: Seconds
    left_out: str | None
    duplicates: Sequence[tuple[Entry, int]]
    unreadable: Sequence[UserError]
    unknown: int
    plans: Sequence[Plan]


def inspect(dataset: Dataset, ranks: int, seed: int) -> Inspection:
    """Read a section's manifests and the header of every file, and lay out its batches.

    Args:
        dataset: a data section of one or more plain manifests.
        ranks: processes that share the utterances.
        seed: of the order, if the section shuffles.

    Raises:
        UserError: a manifest that cannot be used, or leaves nothing.
    """
    corpus = Corpora().read(dataset)
    first: dict[Piece, Entry] = {}
    counts: Counter[Piece] = Counter()
    for entry in corpus.entries:
        piece = (str(entry.audio_file), entry.offset or 0.0, entry.duration)
        first.setdefault(piece, entry)
        counts[piece] += 1
    duplicates = [(first[piece], count) for piece, count in counts.items() if count > 1]
    unreadable = list(bad_files(list(first.values()), Decoding.of(dataset, ANY_RATE)))
    lengths = [entry.duration or _length(entry) for entry in corpus.entries]
    seconds = np.array([length or 0.0 for length in lengths])
    batch_size, shuffle = dataset.batch_size or 1, bool(dataset.shuffle)
    orders = [shares_of(len(seconds), rank, ranks, shuffle, seed) for rank in range(ranks)]
    plans = [plan(seconds, order, batch_size, dataset.drop_last) for order in orders]
    unknown = sum(length is None for length in lengths)
    return Inspection(corpus.entries, seconds, corpus.left_out(), duplicates, unreadable, unknown, plans)


def shares_of(count: int, rank: int, ranks: int, shuffle: bool, seed: int) -> list[int]:
    """The indices of one of several processes, as Lightning's sampler for training shares them out."""
    if count == 0:
        return []
    indices: list[int] = list(DistributedSampler(range(count), ranks, rank, shuffle, seed))  # type: ignore[arg-type]
    return indices


def plan(seconds: Seconds, order: Sequence[int], batch_size: int, drop_last: bool) -> Plan:
    """The batches that an order of utterances gives, without Python's loops: a manifest may have millions of lines."""
    whole = len(order) // batch_size * batch_size
    kept = np.asarray(order[:whole] if drop_last else order, dtype=np.int64)
    if not len(kept):
        return Plan(0, 0.0, 0.0, ([], 0.0))
    missing = -len(kept) % batch_size
    table = np.concatenate([seconds[kept], np.full(missing, -1.0)]).reshape(-1, batch_size)
    sizes = table.max(axis=1) * (table >= 0).sum(axis=1)
    worst = int(sizes.argmax())
    indices = [int(number) for number in kept[worst * batch_size : (worst + 1) * batch_size]]
    return Plan(len(table), float(seconds[kept].sum()), float(sizes.sum()), (indices, float(sizes[worst])))


def lines(found: Inspection, most: int) -> list[str]:
    """What was found, for a terminal; of duplicates, unreadable files and a batch's utterances so many at most."""
    seconds, unknown = found.seconds, f"; of unknown length: {found.unknown:,}" if found.unknown else ""
    middle = f"shortest {seconds.min():.2f} s, middle {np.median(seconds):.2f} s, longest {seconds.max():.2f} s"
    text = [f"{len(seconds):,} utterances, {seconds.sum() / 3600:,.2f} hours; {middle}", *histogram(seconds)]
    text += [f"left out: {found.left_out}"] if found.left_out else []
    text.append(f"duplicates: {len(found.duplicates):,}")
    text += [f"  {count} times {entry.audio_file} ({entry.place})" for entry, count in found.duplicates[:most]]
    text.append(f"unreadable: {len(found.unreadable):,}{unknown}")
    text += [f"  {error.what}: {error.where}" for error in found.unreadable[:most]]
    for rank, each in enumerate(found.plans):
        whose = f"rank {rank}: " if len(found.plans) > 1 else ""
        padding = f"{each.padding:.1%} of what is computed is padding"
        text.append(f"{whose}{each.batches:,} batches an epoch, {each.seconds / 3600:,.2f} hours, {padding}")
        text.append(f"  the worst batch: {each.worst[1]:,.1f} s")
        worst = [(seconds[index], found.entries[index]) for index in each.worst[0][:most]]
        text += [f"  {length:8.2f} s {entry.audio_file} ({entry.place})" for length, entry in worst]
    return text


def histogram(seconds: Seconds, bars: int = BARS) -> list[str]:
    """Lines of a histogram over equal ranges of lengths: from, to, how many, a bar."""
    counts, edges = np.histogram(seconds, bars)
    most = max(1, int(counts.max()))
    ends = zip(edges, edges[1:], counts, strict=False)
    return [
        f"{low:8.2f} to {high:8.2f} s {count:>12,} {'#' * round(WIDTH * count / most)}" for low, high, count in ends
    ]


def _length(entry: Entry) -> float | None:
    """Seconds from a file's offset to its end, by its header; None if it cannot be read."""
    try:
        return max(0.0, float(soundfile.info(parts_of(entry)[0]).duration) - (entry.offset or 0.0))
    except (OSError, RuntimeError):
        return None
