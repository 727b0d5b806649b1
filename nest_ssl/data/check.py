"""A data section checked before anything trains, for both trainers alike: a bad file is one line, not a traceback.

What NeMo would train on is accepted; only truncated files, which NeMo takes without a word, are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from nest_ssl.base.errors import UserError
from nest_ssl.data.audio import AudioProblem, check_header
from nest_ssl.data.dataset import as_user_error, load_utterance
from nest_ssl.data.manifest import Entry, NoiseClip, read_noise, read_speech
from nest_ssl.data.settings import read_settings

CHECKED_AT_MOST = 20_000  # files (about 2 s); of more, every n-th. The loader tells of the others when it meets them.

log = logging.getLogger(__name__)
Checked = TypeVar("Checked")


def check_dataset(section: Mapping[str, Any], skip_bad: bool = False) -> None:
    """Read the section's manifests and the header of each audio file.

    Args:
        section: NeMo's `train_ds` or `validation_ds`.
        skip_bad: only warn of audio files that cannot be used, unless there are no others.

    Raises:
        UserError: the first thing wrong: an option, a manifest, a line, a file.
    """
    settings = read_settings(section)
    entries = _pieces(_some(read_speech(settings.manifests, settings.min_duration, settings.max_duration)))
    bad = _bad_files(entries, settings.decoding.channel_selector)
    if skip_bad:
        _warn_of_speech(list(bad), len(entries))
    elif error := next(bad, None):
        raise error
    _warn_of_noise(read_noise(settings.noise_manifests), settings.noise_manifests)


def find_bad_audio(sections: Sequence[Mapping[str, Any]]) -> UserError | None:
    """Decode one file after another until one cannot be used: what a trainer met that did not say in which file.

    Args:
        sections: data sections, in the order in which to look.
    """
    for section in sections:
        settings = read_settings(section)
        for entry in _pieces(read_speech(settings.manifests, settings.min_duration, settings.max_duration)):
            try:
                load_utterance(entry, settings.decoding)
            except UserError as error:
                return error
    return None


def _pieces(entries: Sequence[Entry]) -> list[Entry]:
    """Each piece of audio once."""
    pieces: dict[Any, Entry] = {}
    for entry in entries:
        pieces.setdefault((str(entry.audio_file), entry.offset, entry.duration), entry)
    return list(pieces.values())


def _bad_files(entries: Sequence[Entry], selector: Any) -> Iterator[UserError]:
    for entry in entries:
        try:
            check_header(entry.audio_file, entry.offset, entry.duration, selector)
        except AudioProblem as problem:
            yield as_user_error(problem, entry)


def _warn_of_speech(bad: Sequence[UserError], checked: int) -> None:
    """Files that the user wants left out: the loader names each in the log when it meets it."""
    if not bad:
        return
    if len(bad) == checked:
        fix = "Check the paths and the files; bad_audio=skip needs some that can be used."
        raise UserError("none of the audio can be used", f"{bad[0].what}: {bad[0].where}", fix)
    log.warning("warning: %d of %d audio files cannot be used and will be skipped, the first: %s",
                len(bad), checked, bad[0])  # fmt: skip


def _warn_of_noise(clips: Sequence[NoiseClip], manifests: Sequence[str]) -> None:
    """Clips that cannot be read are no error: NeMo draws others, and trains without noise when there are none."""
    bad = [(clip, problem) for clip in _some(clips) if (problem := _problem(clip)) is not None]
    if manifests and not clips:
        log.warning("warning: no noise clip in %s: training without noise", ",".join(manifests))
    if bad:
        clip, problem = bad[0]
        text = "warning: %d of %d noise clips cannot be used and will be passed over, the first: %s (%s): %s"
        log.warning(text, len(bad), len(clips), clip.audio_file, clip.place, problem.what)


def _problem(clip: NoiseClip) -> AudioProblem | None:
    try:
        check_header(clip.audio_file, None, None, None)
    except AudioProblem as problem:
        return problem
    return None


def _some(items: Sequence[Checked]) -> Sequence[Checked]:
    return items[:: max(1, -(-len(items) // CHECKED_AT_MOST))]
