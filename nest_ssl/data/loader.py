"""A data section of the config -> a DataLoader that gives NeMo's batches.

    loader = build_dataloader(read(Dataset, cfg.model.train_ds, "model.train_ds"), cfg.model.sample_rate)

The same entries in the same order, the same samples, the same draws from the same generators; with worker processes
too, for torch seeds them the same way. What torch draws itself (a base seed an epoch, a seed to shuffle) is untouched.

Source of the behaviour: NeMo 3.0.0 `EncDecDenoiseMaskedTokenPredModel._setup_dataloader_from_config`; without noise,
that of `SpeechEncDecSelfSupervisedModel`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from nest_ssl.base.errors import UserError
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import plain
from nest_ssl.data.audio import Decoding
from nest_ssl.data.augment import build_augmentor
from nest_ssl.data.corpus import Corpora, is_endless, sets_of, within_limits
from nest_ssl.data.dataset import AudioNoiseDataset, TranscribedDataset, Utterances
from nest_ssl.data.epoch import Epoch
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import is_url
from nest_ssl.data.perturb import Perturbations
from nest_ssl.data.skipping import SkippedAudio
from nest_ssl.data.sources.mixed import Mixture, chain, place_in
from nest_ssl.releases import GENERATIONS, NEWEST, Generation


class AudioNoiseLoader(DataLoader[Any]):
    """A DataLoader that raises a worker's `UserError` as it was, or goes on without the utterances that cannot be used;
    and that can take up an epoch where it was left.

    Its state is what an epoch's draws follow from, torch's generator when the epoch began, and the number of batches
    handed out since. To resume, the next `iter()` begins that epoch again and passes over so many batches. This leaves
    the generators anywhere: whoever resumes restores them afterwards. (An epoch that had to begin another pass over the
    data, see `skipping.py`, begins that one again.)

    Of streams all generators count, and where the data set itself stands. An endless stream goes on from epoch to
    epoch, and all are read again from the first: that takes as long as reading them took.

    Args:
        skipped: counts the utterances left out; None: the first one is raised. The arguments are attributes too:
            Lightning makes another loader of them to give each process its part of the data.
        keep_length: whether batches of which nothing is left are made up for at the end of the epoch.
        goes_on: whether an epoch begins in the data where the one before has ended.
    """

    _epoch: Epoch | None = None
    _resumed: dict[str, Any] | None = None
    _begun: dict[str, Any] | None = None  # of a stream: the state of all else when its pass, or the first, began

    def __init__(
        self,
        *args: Any,
        skipped: SkippedAudio | None = None,
        keep_length: bool = False,
        goes_on: bool = False,
        **kwargs: Any,
    ) -> None:
        self.skipped, self.keep_length, self.goes_on = skipped, keep_length, goes_on
        super().__init__(*args, **kwargs)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        resumed, self._resumed = self._resumed, None
        length = len(self) if self.keep_length and self.skipped is not None else None
        start = super().__iter__  # not a generator: torch draws its base seed at `iter()`, not at `next()`
        if resumed is None:
            self._note_beginning()
            self._epoch = Epoch(start, self.skipped, length)
            return self._epoch
        if "stream" in resumed:
            self._begin_stream_again(start, resumed["stream"])
        torch.set_rng_state(resumed["generator"])
        if "shared_epoch" in resumed and isinstance(self.sampler, DistributedSampler):
            self.sampler.set_epoch(resumed["shared_epoch"])  # Lightning does so only behind this
        whole = self._counted()
        if whole is not None and resumed["batches"] >= whole and (self.num_workers or "stream" not in resumed):
            self._epoch = Epoch(lambda: iter(()), earlier=resumed["earlier"])  # done; starts no workers
            self._epoch.handed_out = resumed["batches"]
        else:
            self._epoch = Epoch(start, self.skipped, length, resumed["earlier"])
            decode = self.goes_on or isinstance(self.dataset, IterableDataset)
            self._epoch.pass_over(resumed["batches"] - resumed["earlier"], decode)
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, see `Epoch.state`; of a stream also what its batches follow from, `stream`; of data
        that several processes share out the epoch that the order of all follows from, `shared_epoch`."""
        shared = {"shared_epoch": self.sampler.epoch} if isinstance(self.sampler, DistributedSampler) else {}
        if self._epoch is None:
            return {"generator": torch.get_rng_state(), "batches": 0, "earlier": 0, **shared}
        return {**self._epoch.state(), **shared} | ({"stream": self._begun} if self._begun is not None else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next `iter()` continue from a `state_dict`.

        Raises:
            UserError: the data has fewer batches than were handed out.
        """
        whole = self._counted()
        if whole is not None and state["batches"] > whole:
            raise UserError(
                "the data has shrunk since the checkpoint",
                f"it is {state['batches']} batches into an epoch that has {whole} now",
                "Resume with the data and batch size that it was saved with.",
            )
        self._resumed = dict(state)

    def _counted(self) -> int | None:
        """The batches of an epoch; None where they show when they are made."""
        try:
            return len(self)
        except TypeError:
            return None

    def _note_beginning(self) -> None:
        """Of a stream, note what the pass that begins now follows from; of one that goes on, what all of it does."""
        if not (isinstance(self.dataset, IterableDataset) or hasattr(self.sampler, "epoch")):
            return
        epoch = getattr(self.sampler, "epoch", None)  # of Lhotse's samplers
        if self._begun is not None and self.goes_on:
            assert self._epoch is not None
            earlier = [*self._begun["passes"][:-1], [self._begun["passes"][-1][0], self._epoch.handed_out], [epoch, 0]]
            self._begun = {**self._begun, "passes": earlier}
            return
        self._begun = {"generators": generator_states(), "place": place_in(self.dataset), "passes": [[epoch, 0]]}

    def _begin_stream_again(self, start: Callable[[], Iterator[Any]], stream: Mapping[str, Any]) -> None:
        """Bring generators, data set and sampler to where a pass began; a stream that goes on, by reading it again."""
        self._begun = dict(stream)
        restore_generators(stream["generators"])
        if stream["place"] is not None:
            self.dataset.load_state_dict(stream["place"])  # type: ignore[attr-defined]
        for number, (epoch, count) in enumerate(stream["passes"]):
            if epoch is not None:
                self.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            if number < len(stream["passes"]) - 1:
                Epoch(start, self.skipped).pass_over(count, decode=True)


def build_dataloader(
    dataset: Dataset | None,
    sample_rate: int,
    *,
    shuffle: bool = False,
    skipped: SkippedAudio | None = None,
    training: bool = False,
    differences: Generation = GENERATIONS[NEWEST],
    corpora: Corpora | None = None,
    seeded: bool = True,
    noisy: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> AudioNoiseLoader | None:
    """The loader that a data section describes; None for no section.

    Args:
        dataset: NeMo's `train_ds` or `validation_ds`.
        sample_rate: the model's, Hz; used where the section gives none.
        shuffle: used where the section does not have it (NeMo: true for training, false for validation).
        skipped: go on without utterances that cannot be used, and count them here; None: stop at the first.
        training: whether an epoch must have all its batches, whatever is skipped.
        differences: of the generation of NeMo whose batches to make.
        corpora: manifests that have been read already.
        seeded: whether draws that NeMo seeds from the clock follow from the seed, see `sources/seeding.py`.
        noisy: whether noise is drawn for each utterance (`AudioNoiseBatch`); else it comes with its transcript.
        rank, world_size: which of how many processes reads this; each gets its part of streams and mixtures here (of a
            plain manifest Lightning shares out the indices).

    Raises:
        UserError: a manifest that cannot be used, or leaves nothing.
    """
    if dataset is None:
        return None
    corpora = corpora or Corpora(transcripts=not noisy)
    shuffle = bool(dataset.shuffle) if "shuffle" in dataset.model_fields_set else shuffle  # given as null: false
    if dataset.use_lhotse:
        return lhotse_loader(dataset, sample_rate, shuffle, corpora, differences, rank, world_size)
    of, skip_bad = differences, skipped is not None
    items, collate = items_of(dataset, sample_rate, corpora, shuffle, seeded, skip_bad, of, noisy, rank, world_size)
    return AudioNoiseLoader(
        items,
        batch_size=dataset.batch_size,
        collate_fn=collate,
        drop_last=dataset.drop_last,
        shuffle=shuffle and not isinstance(items, IterableDataset),
        num_workers=dataset.num_workers,
        pin_memory=dataset.pin_memory,
        skipped=skipped,
        keep_length=training and not isinstance(items, IterableDataset),
    )


def items_of(
    dataset: Dataset,
    sample_rate: int,
    corpora: Corpora,
    shuffle: bool,
    seeded: bool,
    skip_bad: bool,
    of: Generation,
    noisy: bool,
    rank: int,
    world_size: int,
) -> tuple[Any, Callable[[Any], Any]]:
    """What gives the items that a section describes, and what makes batches of them."""
    corpus = corpora.read(dataset)
    decoding = Decoding.of(dataset, sample_rate, of.audio_reader)
    perturb = Perturbations(dataset.augmentor, decoding.sample_rate, of) if dataset.augmentor else None
    mixing = None if dataset.is_concat and not dataset.is_tarred else dataset.batch_augmentor  # NeMo hands on none
    augmentor = build_augmentor(mixing, of.augmentation_draws) if mixing is not None else None

    def utterances(entries: Sequence[Entry]) -> Utterances:
        if not noisy:
            return TranscribedDataset(entries, decoding, perturb, skip_bad)
        return AudioNoiseDataset(entries, corpus.clips, decoding, perturb, augmentor, of.noisy_length, skip_bad)

    if not (dataset.is_tarred or dataset.is_concat):
        plain = utterances(corpus.entries)
        return plain, plain.collate
    from nest_ssl.data.sources.shards import own_share
    from nest_ssl.data.sources.tarred import TarredAudio

    sets: list[Any] = []
    for parts in sets_of(dataset):
        entries = [within_limits([corpora.speech(path) for path in part.manifests], dataset)[0] for part in parts]
        if not dataset.is_tarred:
            sets.append(utterances(entries[0]))
            continue
        gathered = dataset.shuffle_n if dataset.shuffle_n is not None else 4 * (dataset.batch_size or 1)
        shuffle_n = gathered if shuffle else 0
        shares = [own_share(part.tars, dataset.tarred_shard_strategy, rank, world_size) for part in parts]
        if dataset.is_concat and min(map(len, shares)) < max(1, dataset.num_workers):
            what = f"fewer tar files of a set than there are workers to read them ({dataset.num_workers} a process)"
            fix = "Write more tar files, or lower num_workers; NeMo waits without end for one that has none."
            raise UserError(what, ", ".join(part.tars[0] for part in parts), fix)
        buckets = [TarredAudio(utterances(lines), tars, shuffle_n, seeded)
                   for tars, lines in zip(shares, entries, strict=True)]  # fmt: skip
        weights = dataset.bucketing_weights or [1] * len(buckets)
        repeated = [bucket for bucket, weight in zip(buckets, weights, strict=True) for _ in range(weight)]
        sets.append(chain(repeated, dataset.bucketing_strategy, rank))
    collate = utterances([]).collate
    return (Mixture(sets, dataset, rank, world_size, seeded) if dataset.is_concat else sets[0]), collate


def lhotse_loader(
    dataset: Dataset, sample_rate: int, shuffle: bool, corpora: Corpora, of: Generation, rank: int, world_size: int
) -> AudioNoiseLoader:
    """The loader of a section with `use_lhotse`; it seeds all generators, see `sources/sampling.py`."""
    from nest_ssl.data.sources.sampling import CutsWithNoise, lhotse_arguments

    corpus, mixing = corpora.read(dataset), dataset.batch_augmentor
    augmentor = build_augmentor(mixing, of.augmentation_draws) if mixing is not None else None
    section = {**dataset.model_dump(exclude_none=True), "shuffle": shuffle}
    items, rate = CutsWithNoise(corpus.clips, augmentor), dataset.sample_rate or sample_rate
    arguments = lhotse_arguments(dataset, section, items, rate, rank, world_size)
    workers, pinned, goes_on = dataset.num_workers, dataset.pin_memory, is_endless(dataset)
    return AudioNoiseLoader(**arguments, batch_size=None, num_workers=workers, pin_memory=pinned, goes_on=goes_on)


def validation_sections(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One section for each validation loader: NeMo makes one of every manifest of a list (a comma list stays one).

    NeMo looks for the first key whose value is a path, or a list of paths, that exist, and splits there (3.0.0
    `nemo.utils.model_utils.resolve_validation_dataloaders`). That is `manifest_filepath` in all but contrived cases.
    """
    given = plain(section)
    split_at_first = given.pop("val_dl_idx", 0) >= 0
    for key, value in given.items() if split_at_first else ():
        paths = [str(part) for part in (value if isinstance(value, list) else [value])]
        if all(os.path.exists(path) or is_url(path) for path in paths):
            return [{**given, key: part} for part in value] if isinstance(value, list) else [given]
    return [given]
