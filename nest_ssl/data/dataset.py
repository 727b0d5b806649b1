"""Utterances as torch datasets: with noise drawn for each, or with their transcripts.

Source of the behaviour: NeMo 3.0.0, in `nemo.collections.asr.data`: `ssl_dataset.AudioNoiseDataset`,
`audio_to_text.AudioToCharDataset`.
"""

from __future__ import annotations

import logging
import math
import string
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from nest_ssl.base.errors import UserError
from nest_ssl.data.audio import Decoding, load
from nest_ssl.data.batch import (
    AudioNoiseBatch,
    AudioNoiseItem,
    Augmentor,
    NoisyLength,
    TranscribedBatch,
    collate,
    collate_transcribed,
)
from nest_ssl.data.header import as_problem
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import NoiseClip
from nest_ssl.data.noise import draw_noise
from nest_ssl.data.perturb import Perturbations
from nest_ssl.data.problems import AudioProblem, BadAudio, ReaderProblem, as_user_error
from nest_ssl.data.skipping import LoadFailure, PartialBatch

SHORTEST_SECONDS = 1.0  # shorter audio is repeated up to this

log = logging.getLogger(__name__)


# NeMo's characters without labels of one's own; others are left out.
CHARACTERS = {character: index for index, character in enumerate(string.printable)}


class Utterances(Dataset[Any]):
    """One item an entry.

    Attributes:
        entries: the utterances, in order.
        skip_bad: leave utterances that cannot be used out of their batch, see `skipping.py`.
    """

    entries: Sequence[Entry]
    skip_bad: bool

    @abstractmethod
    def load(self, entry: Entry, content: bytes | None) -> Any:
        """The item, of its audio file or the `content` of one."""

    @abstractmethod
    def batch_of(self, items: Sequence[Any]) -> Any:
        """A batch of at least one item."""

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Any:
        return self.item(self.entries[index])

    def item(self, entry: Entry, content: bytes | None = None) -> Any:
        """The item of an entry.

        Args:
            entry: the line that describes it.
            content: of its audio file, where that lies in an archive.

        Raises:
            UserError: the file cannot be used (in a worker process, or to be skipped: returned as a `LoadFailure`).
        """
        try:
            return self.load(entry, content)
        except UserError as error:
            is_bad_audio = isinstance(error, BadAudio)
            if get_worker_info() is None and not (self.skip_bad and is_bad_audio):
                raise
            return LoadFailure(error, entry if is_bad_audio else None)

    def collate(self, items: Sequence[Any]) -> Any:
        """The batch; or the first failure that stops the run; or, if bad audio is skipped, what is left of it."""
        good = [item for item in items if not isinstance(item, LoadFailure)]
        failures = [item for item in items if isinstance(item, LoadFailure)]
        for failure in failures:
            if not self.skip_bad or failure.entry is None:
                return failure
        try:
            batch = self.batch_of(good) if good else None
        except UserError as error:
            if get_worker_info() is None:
                raise
            return LoadFailure(error)
        return PartialBatch(batch, failures) if failures or batch is None else batch


@dataclass(eq=False, repr=False)
class AudioNoiseDataset(Utterances):
    """The audio, at least a second of it, and as much noise.

    Args:
        entries, skip_bad: see `Utterances`.
        clips: the noises to draw from; may be none.
        decoding: of the utterances.
        perturb: changes each as it is read.
        augmentor: mixes a batch; None adds the noise as it is.
        noisy_length: see `batch.collate`.
    """

    entries: Sequence[Entry]
    clips: Sequence[NoiseClip]
    decoding: Decoding
    perturb: Perturbations | None = None
    augmentor: Augmentor | None = None
    noisy_length: NoisyLength = "noise"
    skip_bad: bool = False

    def load(self, entry: Entry, content: bytes | None) -> AudioNoiseItem:
        audio, decoding = load_utterance(entry, self.decoding, content, perturb=self.perturb), self.decoding
        noise, noise_len = draw_noise(self.clips, decoding.sample_rate, audio.size(0), decoding.reader)
        return AudioNoiseItem(audio, torch.tensor(audio.size(0)), noise, noise_len)

    def batch_of(self, items: Sequence[AudioNoiseItem]) -> AudioNoiseBatch:
        return collate(items, self.augmentor, self.noisy_length)


@dataclass(eq=False, repr=False)
class TranscribedDataset(Utterances):
    """The audio as it is, and the characters of its transcript, which models without noise are given and do not use.

    Args:
        entries, skip_bad: see `Utterances`.
        decoding: of the utterances.
        perturb: changes each as it is read.
    """

    entries: Sequence[Entry]
    decoding: Decoding
    perturb: Perturbations | None = None
    skip_bad: bool = False

    def load(self, entry: Entry, content: bytes | None) -> TranscribedBatch:
        audio = load_utterance(entry, self.decoding, content, 0.0, self.perturb)
        known = [CHARACTERS[character] for character in entry.text if character in CHARACTERS]
        characters = torch.tensor(known, dtype=torch.long)
        return audio, torch.tensor(audio.size(0)), characters, torch.tensor(len(known))

    def batch_of(self, items: Sequence[TranscribedBatch]) -> TranscribedBatch:
        return collate_transcribed(items)


def load_utterance(
    entry: Entry,
    decoding: Decoding,
    content: bytes | None = None,
    shortest_seconds: float = SHORTEST_SECONDS,
    perturb: Perturbations | None = None,
) -> Tensor:
    """An entry's audio, float32 [T], perturbed, then repeated to at least a second, or to what is asked for; of its
    file, or of the `content` of one.

    Raises:
        BadAudio: the file cannot be used; says why, and which line of which manifest names it.
        UserError: no such file could be used here: a decoder is missing, the disk or the file handles are used up.
    """
    try:
        samples = load(entry.audio_file if content is None else content, entry.offset, entry.duration, decoding)
        if samples.ndim != 1:
            fix = "Set channel_selector to one, or to average."
            raise AudioProblem(f"{samples.shape[-1]} channels are left", fix)
    except AudioProblem as problem:
        raise as_user_error(problem, entry) from problem
    except Exception as error:  # decoders raise anything; whatever it is, this file is the reason
        if isinstance(error, OSError) and isinstance(lacking := as_problem(error), ReaderProblem):
            raise as_user_error(lacking, entry) from error
        garbled = AudioProblem(f"audio that cannot be decoded ({error})", "Copy the file again, or convert it.")
        raise as_user_error(garbled, entry) from error
    if perturb is not None:
        samples = perturb(samples)
    if samples.size == 0:
        log.warning(
            "%s (%s) gives no samples: %g s of silence instead", entry.audio_file, entry.place, shortest_seconds
        )
    return repeat_short(torch.tensor(samples, dtype=torch.float), int(shortest_seconds * decoding.sample_rate))


def repeat_short(audio_T: Tensor, shortest: int) -> Tensor:
    """Audio shorter than `shortest` samples is repeated up to that length; no audio at all becomes zeros."""
    length = audio_T.size(0)
    if length >= shortest:
        return audio_T
    if length == 0:
        return torch.zeros(shortest)
    return audio_T.repeat(math.ceil(shortest / length))[:shortest]
