"""What is in a manifest, and what batches it gives: `nest-ssl data inspect`.

Lengths are the manifest's; where it has none, the file's. Batches are those of a plain loader, in the manifest's order
or, shuffled, in the one that several processes have in their first epoch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.data.audio import Decoding
from nest_ssl.data.check import bad_files
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.lines import Entry, Numbers, Seconds
from nest_ssl.data.manifest import parts_of

ANY_RATE = 16_000  # Hz; whether a file can be read does not depend on what it is resampled to
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
    """What was found: utterances within the limits and their seconds [N], problems, and the batches of each rank.

    Args:
        duplicates: how many pieces of audio come several times; and the first of them, each with how often.
        unreadable: how many files cannot be used, of how many that were looked at; and the first of them.
        unknown: utterances whose length neither the manifest nor the file says.
    """

    entries: Sequence[Entry]
    seconds: Seconds
    left_out: str | None
    duplicates: tuple[int, Sequence[tuple[Entry, int]]]
    unreadable: tuple[int, int, Sequence[UserError]]
    unknown: int
    plans: Sequence[Plan]


def inspect(dataset: Dataset, ranks: int, seed: int, show: int = 5, sample: int | None = None) -> Inspection:
    """Read a section's manifests and the headers of its files, and lay out its batches.

    Of each line there are numbers alone beside what `lines.py` keeps: of a million 0.08 GB more for a moment.
    A header takes 0.1 ms where the disk has it in memory.

    Args:
        dataset: a data section of one or more plain manifests.
        ranks: processes that share the utterances.
        seed: of the order, if the section shuffles.
        show: so many duplicates and unreadable files are kept.
        sample: of more pieces of audio than so many, only every n-th has its header read; None: all.

    Raises:
        UserError: a manifest that cannot be used, or leaves nothing.
    """
    corpus = Corpora().read(dataset)
    entries, types = corpus.entries, np.dtype([("piece", "u8"), ("seconds", "f8")])
    columns = np.fromiter(
        ((piece_of(entry), entry.duration or _length(entry)) for entry in entries), types, len(entries)
    )
    _, firsts, counts = np.unique(columns["piece"], return_index=True, return_counts=True)
    order = np.argsort(firsts)
    firsts, counts = firsts[order], counts[order]
    several = np.flatnonzero(counts > 1)
    duplicates = [(entries[int(firsts[number])], int(counts[number])) for number in several[:show]]
    looked_at = firsts[:: 1 if sample is None else max(1, math.ceil(len(firsts) / sample))]
    errors = bad_files((entries[int(number)] for number in looked_at), Decoding.of(dataset, ANY_RATE))
    unreadable = list(itertools.islice(errors, show))
    bad = len(unreadable) + sum(1 for _ in errors)
    unknown = np.isnan(columns["seconds"])
    seconds = np.where(unknown, 0.0, columns["seconds"])
    batch_size, shuffle = dataset.batch_size or 1, bool(dataset.shuffle)
    shares = (shares_of(len(seconds), rank, ranks, shuffle, seed) for rank in range(ranks))
    plans = [plan(seconds, share, batch_size, dataset.drop_last) for share in shares]
    found_twice, found_bad = (len(several), duplicates), (bad, len(looked_at), unreadable)
    return Inspection(entries, seconds, corpus.left_out(), found_twice, found_bad, int(unknown.sum()), plans)


def piece_of(entry: Entry) -> int:
    """A number for a file, where in it and how much; of ten million two are the same by chance once in 370,000 runs."""
    piece = repr((entry.audio_file, float(entry.offset or 0), entry.duration and float(entry.duration)))
    return int.from_bytes(hashlib.blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def shares_of(count: int, rank: int, ranks: int, shuffle: bool, seed: int) -> Numbers:
    """The indices of one of several processes, as Lightning's sampler for training shares them out.

    Each has as many: the first ones of the order come twice where they are too few.
    """
    seeded = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=seeded).numpy() if shuffle else np.arange(count)
    return np.resize(order, -(-count // ranks) * ranks)[rank::ranks]


def plan(seconds: Seconds, order: Sequence[int] | Numbers, batch_size: int, drop_last: bool) -> Plan:
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
    """What was found, for a terminal; of a batch's utterances so many at most."""
    seconds, unknown = found.seconds, f"; of unknown length: {found.unknown:,}" if found.unknown else ""
    middle = f"shortest {seconds.min():.2f} s, middle {np.median(seconds):.2f} s, longest {seconds.max():.2f} s"
    text = [f"{len(seconds):,} utterances, {seconds.sum() / 3600:,.2f} hours; {middle}", *histogram(seconds)]
    text += [f"left out: {found.left_out}"] if found.left_out else []
    (several, duplicates), (bad, looked_at, unreadable) = found.duplicates, found.unreadable
    text.append(f"duplicates: {several:,}")
    text += [f"  {count} times {entry.audio_file} ({entry.place})" for entry, count in duplicates]
    text.append(f"unreadable: {bad:,} of {looked_at:,} whose headers were read{unknown}")
    text += [f"  {error.what}: {error.where}" for error in unreadable]
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
