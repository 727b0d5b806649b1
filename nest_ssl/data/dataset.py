"""Utterances with noise drawn for each, as a torch dataset.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.asr.data.ssl_dataset.AudioNoiseDataset`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from nest_ssl.base.errors import UserError
from nest_ssl.data.audio import AudioProblem, Decoding, load
from nest_ssl.data.batch import AudioNoiseBatch, AudioNoiseItem, Augmentor, collate
from nest_ssl.data.manifest import Entry, NoiseClip
from nest_ssl.data.noise import draw_noise
from nest_ssl.data.skipping import LoadFailure, Remainder

SHORTEST_SECONDS = 1.0  # shorter audio is repeated up to this

log = logging.getLogger(__name__)


class AudioNoiseDataset(Dataset[AudioNoiseItem | LoadFailure]):
    """One item an entry: the audio, at least a second of it, and as much noise.

    Args:
        entries: the utterances, in order.
        clips: the noises to draw from; may be none.
        how: the decoding of the utterances.
        augmentor: mixes a batch; None adds the noise as it is.
        noisy_length: see `batch.collate`.
        skip_bad: leave utterances that cannot be used out of their batch, see `skipping.py`.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        clips: Sequence[NoiseClip],
        how: Decoding,
        augmentor: Augmentor | None = None,
        noisy_length: str = "noise",
        skip_bad: bool = False,
    ) -> None:
        self.entries, self.clips, self.how = entries, clips, how
        self.augmentor, self.noisy_length, self.skip_bad = augmentor, noisy_length, skip_bad

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> AudioNoiseItem | LoadFailure:
        """An utterance and its noise.

        Raises:
            UserError: the file cannot be used (in a worker process, or to be skipped: returned as a `LoadFailure`).
        """
        try:
            audio = load_utterance(self.entries[index], self.how)
            noise, noise_len = draw_noise(self.clips, self.how.sample_rate, audio.size(0), self.how.reader)
        except UserError as error:
            if get_worker_info() is None and not self.skip_bad:
                raise
            return LoadFailure(error, self.entries[index])
        return AudioNoiseItem(audio, torch.tensor(audio.size(0)), noise, noise_len)

    def collate(self, items: Sequence[AudioNoiseItem | LoadFailure]) -> AudioNoiseBatch | Remainder | LoadFailure:
        """The batch; what went wrong with its first bad utterance; or, if those are skipped, what is left of it."""
        good = [item for item in items if isinstance(item, AudioNoiseItem)]
        failures = [item for item in items if isinstance(item, LoadFailure)]
        if failures and not self.skip_bad:
            return failures[0]
        try:
            batch = collate(good, self.augmentor, self.noisy_length) if good else None
            return Remainder(batch, failures) if failures else batch
        except UserError as error:
            if get_worker_info() is None:
                raise
            return LoadFailure(error)


def load_utterance(entry: Entry, how: Decoding) -> Tensor:
    """An entry's audio, float32 [T], repeated to at least a second.

    Raises:
        UserError: the file cannot be used; says why, and which line of which manifest names it.
    """
    try:
        samples = load(entry.audio_file, entry.offset, entry.duration, how)
    except AudioProblem as problem:
        raise as_user_error(problem, entry) from problem
    except Exception as error:  # decoders raise anything; whatever it is, this file is the reason
        problem = AudioProblem(f"audio that cannot be decoded ({error})", "Copy the file again, or convert it.")
        raise as_user_error(problem, entry) from error
    if samples.ndim != 1:
        problem = AudioProblem(f"{samples.shape[-1]} channels are left", "Set channel_selector to one, or to average.")
        raise as_user_error(problem, entry)
    if samples.size == 0:
        log.warning("%s (%s) gives no samples: a second of silence instead", entry.audio_file, entry.place)
    return repeat_short(torch.tensor(samples, dtype=torch.float), int(SHORTEST_SECONDS * how.sample_rate))


def as_user_error(problem: AudioProblem, entry: Entry) -> UserError:
    """A file's problem, with the line of the manifest that names the file."""
    return UserError(problem.what, f"{entry.audio_file} ({entry.place})", problem.fix)


def repeat_short(audio_T: Tensor, shortest: int) -> Tensor:
    """Audio shorter than `shortest` samples is repeated up to that length; no audio at all becomes zeros."""
    length = audio_T.size(0)
    if length >= shortest:
        return audio_T
    if length == 0:
        return torch.zeros(shortest)
    return audio_T.repeat(math.ceil(shortest / length))[:shortest]
