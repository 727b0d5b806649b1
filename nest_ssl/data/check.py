"""A data section checked before anything trains, for both trainers alike: a bad file is one line, not a traceback.

What NeMo would train on is accepted, but for what spoils a training without a word: truncated files, samples that are
no numbers, seconds that are no seconds.
"""

from __future__ import annotations

import logging
import math
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import soundfile

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.data.audio import Decoding, load
from nest_ssl.data.corpus import Corpora, Corpus
from nest_ssl.data.dataset import load_utterance
from nest_ssl.data.files import where_to_look
from nest_ssl.data.header import check_header
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import is_seconds
from nest_ssl.data.problems import AudioProblem, BadAudio, ReaderProblem, UnfitAudio, as_user_error
from nest_ssl.data.torch_internals import raised_in_a_dataset

CHECKED_AT_MOST = 20_000  # files (about 2 s); of more, every n-th. The loader reports the others when it meets them.
DECODED_AT_MOST = 2_000  # floating-point files that are searched for NaN

ANY_RATE = 16_000  # Hz; whether a file can be decoded does not depend on what it is resampled to

log = logging.getLogger(__name__)
Checked = TypeVar("Checked")


def check_dataset(dataset: Dataset, sample_rate: int, skip_bad: bool = False, corpora: Corpora | None = None) -> Corpus:
    """Read the section's manifests and the header of each audio file.

    Args:
        dataset: NeMo's `train_ds` or `validation_ds`.
        sample_rate: the model's, Hz.
        skip_bad: only warn of audio files that cannot be used, unless there are no others.
        corpora: takes the manifests that are read, for whoever needs them next.

    Returns:
        What there is to train on.

    Raises:
        UserError: the first thing wrong: a manifest, a line, a file.
    """
    corpus = (corpora or Corpora()).read(dataset)
    decoding = Decoding.of(dataset, sample_rate)
    for archive in corpus.archives:
        if not dataset.use_lhotse or archive.endswith(".tar"):
            check_archive(archive)
    # What lies in archives is read when its turn comes: to look for it would be to read them all.
    entries = [] if corpus.archives else _distinct_pieces(_sample(corpus.entries))
    problems = bad_files(entries, decoding)
    if not skip_bad and (error := next(problems, None)):
        raise error
    bad = list(problems)
    if bad and len(bad) == len(entries):
        fix = "Check the paths and the files; bad_audio=skip needs some that can be used."
        raise UserError("none of the audio can be used", f"{bad[0].what}: {bad[0].where}", fix)
    if bad:  # the loader names each in the log when it meets it
        log.warning("warning: %d of %d audio files cannot be used and will be skipped, the first: %s",
                    len(bad), len(entries), bad[0])  # fmt: skip
    _warn_of_noise(corpus, decoding.sample_rate)
    return corpus


def audio_behind(error: Exception, datasets: Sequence[Dataset], corpora: Corpora) -> UserError | None:
    """The file over which NeMo's reader raised `error`, one of `audio.decoder_errors`, if it was that which raised it:
    the first that cannot be decoded.

    The port's errors name their file themselves, and what was not raised while a dataset was read is no file's fault.

    Args:
        error: what ended training.
        datasets: the data sections, in the order in which to look.
        corpora: their manifests.
    """
    if not raised_in_a_dataset(error):
        return None
    for dataset in datasets:
        for entry in _distinct_pieces(corpora.read(dataset).entries):
            try:
                load_utterance(entry, Decoding.of(dataset, ANY_RATE))
            except BadAudio as bad:
                return bad
    return None


def check_archive(path: str) -> None:
    """Refuse what is no tar file.

    Raises:
        UserError: it is not there, or does not begin as a tar file does.
    """
    try:
        with tarfile.open(path) as archive:
            empty = archive.next() is None
    except FileNotFoundError as error:
        raise UserError("no such tar file", path, where_to_look("Check tarred_audio_filepaths.")) from error
    except (OSError, tarfile.TarError) as error:
        raise UserError("not a tar file that can be read", f"{path}: {error}", "Copy it again.") from error
    if empty:
        raise UserError("an empty tar file", path, "Copy it again, or leave it out.")


def _distinct_pieces(entries: Sequence[Entry]) -> list[Entry]:
    pieces: dict[Any, Entry] = {}
    for entry in entries:
        pieces.setdefault((str(entry.audio_file), entry.offset, entry.duration), entry)
    return list(pieces.values())


def bad_files(entries: Iterable[Entry], decoding: Decoding) -> Iterator[UserError]:
    """What is wrong with each audio file that cannot be used: its header is read, and of floating-point files some.

    Raises:
        UserError: no file could be read here.
    """
    decoded = 0
    for entry in entries:
        try:
            floating = check_header(entry.audio_file, entry.offset, entry.duration, decoding.channel_selector)
            decoded += floating
            if floating and decoded <= DECODED_AT_MOST:
                load_utterance(entry, decoding)
        except ReaderProblem as problem:
            raise as_user_error(problem, entry) from problem
        except AudioProblem as problem:
            yield as_user_error(problem, entry)
        except BadAudio as error:
            yield error


def _warn_of_noise(corpus: Corpus, sample_rate: int) -> None:
    """Clips that cannot be read are no error: NeMo draws others, and trains without noise when there are none."""
    clips = _sample(corpus.clips)
    if corpus.noise_manifests and not clips:
        names = ",".join(manifest.path for manifest in corpus.noise_manifests)
        log.warning("warning: no noise clip in %s: training without noise", names)
    bad: list[str] = []
    decoded = 0
    for clip in clips:
        try:
            decoded += (floating := check_header(clip.audio_file, None, None, None))
            if floating and decoded <= DECODED_AT_MOST:
                load(clip.audio_file, None, None, Decoding(sample_rate))
            for key, value in (("duration", clip.duration), ("offset", clip.offset)):
                if value is not None and not is_seconds(value):
                    raise AudioProblem(f"{key} is not a number of seconds", "Correct the manifest.")
        except (UnfitAudio, ReaderProblem) as problem:
            raise as_user_error(problem, clip) from problem
        except (AudioProblem, soundfile.SoundFileError) as problem:
            what = problem.what if isinstance(problem, AudioProblem) else str(problem)
            bad.append(f"{clip.audio_file} ({clip.place}): {what}")
    if bad:
        text = "warning: %d of %d noise clips cannot be used and will be passed over, the first: %s"
        log.warning(text, len(bad), len(clips), bad[0])


def _sample(items: Sequence[Checked]) -> Sequence[Checked]:
    """All of them, or so many at even distances that checking takes seconds."""
    return items[:: max(1, math.ceil(len(items) / CHECKED_AT_MOST))]
