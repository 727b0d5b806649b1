"""A data section checked before anything trains, for both trainers alike: a bad file is one line, not a traceback.

What NeMo would train on is accepted; only truncated files, which NeMo takes without a word, are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from nest_ssl.data.audio import AudioProblem, check_header
from nest_ssl.data.dataset import as_user_error
from nest_ssl.data.manifest import NoiseClip, read_noise, read_speech
from nest_ssl.data.settings import read_settings

CHECKED_AT_MOST = 20_000  # files (about 2 s); of more, every n-th. The loader tells of the others when it meets them.

log = logging.getLogger(__name__)
Checked = TypeVar("Checked")


def check_dataset(section: Mapping[str, Any]) -> None:
    """Read the section's manifests and the header of each audio file.

    Args:
        section: NeMo's `train_ds` or `validation_ds`.

    Raises:
        UserError: the first thing wrong: an option, a manifest, a line, a file.
    """
    settings = read_settings(section)
    seen = set()
    for entry in _some(read_speech(settings.manifests, settings.min_duration, settings.max_duration)):
        piece = (str(entry.audio_file), entry.offset, entry.duration)
        if piece in seen:
            continue
        seen.add(piece)
        try:
            check_header(entry.audio_file, entry.offset, entry.duration, settings.decoding.channel_selector)
        except AudioProblem as problem:
            raise as_user_error(problem, entry) from problem
    _warn_of_noise(read_noise(settings.noise_manifests), settings.noise_manifests)


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
