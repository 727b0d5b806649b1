"""Audio in tar files, read one after another by webdataset and described by a manifest.

Each tar file is read from beginning to end; `shuffle_n` mixes the order of the files, not of what is in them. Workers
and processes share out whole tar files. A manifest may have several lines for one file in them, each with its offset.

Source of the behaviour: NeMo 3.0.0 `ssl_dataset.TarredAudioNoiseDataset`, `audio_to_text._TarredAudioToTextDataset`.
"""

from __future__ import annotations

import hashlib
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
from torch.utils.data import IterableDataset, get_worker_info

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.data.dataset import Utterances
from nest_ssl.data.lines import Entry
from nest_ssl.data.skipping import LoadFailure
from nest_ssl.data.sources.seeding import SeededShuffle
from nest_ssl.data.sources.shards import own_share

SUFFIXES = ";".join(["wav", "mp3", "flac", "opus", *(name.lower() for name in soundfile.available_formats())])


class TarredAudio(IterableDataset[Any]):
    """The utterances of some tar files that the manifest's lines describe; others in them are passed over.

    Args:
        items: makes an item of a line and its file's content; its entries are those lines.
        tars: the tar files, in order.
        shuffle: how many of them are gathered before one is drawn; 0 keeps their order.
        seeded: draw from a generator that follows from the seed, see `seeding.py`; else webdataset's own.
    """

    def __init__(self, items: Utterances, tars: Sequence[str], shuffle: int = 0, seeded: bool = True) -> None:
        import webdataset

        self.items = items
        self.lines = LinesByName(items.entries)
        self.collate = items.collate
        self._pipeline = webdataset.DataPipeline(
            webdataset.SimpleShardList(urls=list(tars)),
            share_of_worker,
            SeededShuffle(shuffle) if seeded else webdataset.shuffle(shuffle),
            webdataset.tarfile_to_samples(),
            webdataset.rename(audio=SUFFIXES, key="__key__"),
            webdataset.to_tuple("audio", "key"),
            self._items_of,
        )

    def __len__(self) -> int:
        return len(self.items.entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pipeline)

    def _items_of(self, files: Iterator[tuple[bytes, str]]) -> Iterator[Any]:
        """An item for each line that names one of the files; what is wrong with an archive comes as a failure.

        Raises:
            UserError: a tar file that cannot be read; a file in a folder of one, over which NeMo stops.
        """
        while True:
            try:
                content, name = next(files)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001 (whatever webdataset meets in an archive)
                said = "; ".join(str(part) for part in error.args if isinstance(part, str)) or repr(error)
                yield _failure(UserError("a tar file that cannot be read", said, "Copy it again."))
                return
            lines = self.lines.get(os.path.splitext(os.path.basename(name))[0])
            if lines and "/" in name:
                what, fix = "audio in a folder of a tar file", "Write the set again: nest-ssl data convert --to tarred."
                yield _failure(UserError(what, f"{name} ({lines[0].place})", fix))
                return
            for line in lines:
                yield self.items.item(line, content)


def _failure(error: UserError) -> LoadFailure:
    """An error on its way out of a worker, see `skipping.LoadFailure`; raised at once where there is none."""
    if get_worker_info() is None:
        raise error
    return LoadFailure(error)


class LinesByName:
    """The lines of each file, by its name without folder and suffix, as NeMo finds them; 16 bytes a line.

    Raises:
        UserError: a line that names several files; tar files have one for each.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        hashes = np.fromiter(map(_hash_of_name, map(_stem, entries)), np.uint64, len(entries))
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]

    def get(self, name: str) -> list[Entry]:
        """A file's lines, in their order; none where no line names it."""
        wanted = np.uint64(_hash_of_name(name))
        first, last = np.searchsorted(self.hashes, wanted), np.searchsorted(self.hashes, wanted, "right")
        found = [self.entries[int(number)] for number in self.order[first:last]]
        return [entry for entry in found if _stem(entry) == name]


def _stem(entry: Entry) -> str:
    if isinstance(entry.audio_file, list):
        raise UserError("several files for an utterance of a tarred set", str(entry.place), "Name one.")
    return os.path.splitext(os.path.basename(entry.audio_file))[0]


def _hash_of_name(name: str) -> int:
    """The same in every process, unlike Python's own."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")


def shares_of_ranks(
    dataset: Dataset, entries: Sequence[Sequence[Entry]], tars: Sequence[Sequence[str]], ranks: int
) -> list[tuple[int, int]]:
    """How many utterances and batches of a set each of several ranks has in an epoch, by the names in its tar files.

    Args:
        dataset: its settings.
        entries: the lines of each bucket.
        tars: the tar files of each bucket.
        ranks: how many share them out.

    Raises:
        UserError: a tar file that cannot be read; and as `LinesByName`.
    """
    weights, workers = dataset.bucketing_weights or [1] * len(tars), max(1, dataset.num_workers)
    drawn = sum(weights) > 1 and dataset.bucketing_strategy != "fixed_order"  # see `mixed.chain`: cut off at its length
    read = [[0] * workers for _ in range(ranks)]
    for lines, paths, weight in zip(entries, tars, weights, strict=True):
        held = lines_in(lines, paths)
        for rank in range(ranks):
            own = own_share(paths, dataset.tarred_shard_strategy, rank, ranks)
            for worker in range(workers):
                count = sum(held[path] for path in own[worker::workers])
                read[rank][worker] += weight * (min(count, len(lines)) if drawn else count)
    size, whole = dataset.batch_size or 1, math.floor if dataset.drop_last else math.ceil
    length = whole(sum(weight * len(lines) for lines, weight in zip(entries, weights, strict=True)) / size)
    # Each worker makes its own batches; Lightning takes no more of them than the loader's length.
    return [(sum(counts), min(length, sum(whole(count / size) for count in counts))) for counts in read]


def lines_in(entries: Sequence[Entry], tars: Sequence[str]) -> dict[str, int]:
    """How many of the lines each tar file has the audio of; headers alone are read.

    Raises:
        UserError: a tar file that cannot be read; and as `LinesByName`.
    """
    lines, endings, held = LinesByName(entries), SUFFIXES.split(";"), {}
    for tar in tars:
        try:
            with tarfile.open(tar) as archive:
                names = [os.path.splitext(os.path.basename(member.name)) for member in archive]
        except tarfile.TarError as error:
            raise UserError("a tar file that cannot be read", f"{tar}: {error}", "Copy it again.") from error
        held[tar] = sum(len(lines.get(name)) for name, ending in names if ending[1:].lower() in endings)
    return held


def share_of_worker(shards: Iterator[Any]) -> Iterator[Any]:
    worker = get_worker_info()
    return iter(shards) if worker is None else iter(list(shards)[worker.id :: worker.num_workers])
