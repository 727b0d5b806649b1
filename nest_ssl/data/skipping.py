"""Going on without the audio files that cannot be used, if the user says `bad_audio: skip`. NeMo stops there.

An utterance that cannot be read, or is truncated, is left out of its batch. It draws no noise, and what mixes the
batch draws for those that are left; so the same bad files and seed give the same batches. A batch of which nothing is
left is passed over. Training then takes further batches from another pass over the data at the end of the epoch, so
that an epoch keeps its number of batches: schedules, accumulated gradients and other processes count on it.
With no bad file, nothing differs from `bad_audio: stop`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nest_ssl.base.errors import UserError
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.data.files import relative_name
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import parts_of

log = logging.getLogger(__name__)


@dataclass
class LoadFailure:
    """A user's mistake met while loading, on its way to the main process.

    Across processes torch rebuilds an exception from its traceback's text, which would lose the one-line message.

    Args:
        error: what to report.
        entry: the utterance, if it is its own audio that cannot be used; None where skipping it would not help.
    """

    error: UserError
    entry: Entry | None = None


@dataclass
class PartialBatch:
    """What is left of a batch (None: nothing), and why the rest could not be used."""

    batch: AudioNoiseBatch | None
    failures: list[LoadFailure]


@dataclass(eq=False)
class SkippedAudio:
    """What was left out during a run, by all loaders and their workers; lives in the main process."""

    utterances: int = 0
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, failures: Sequence[LoadFailure]) -> None:
        """Count them; a file met for the first time is named in the log."""
        for failure in failures:
            assert failure.entry is not None
            self.utterances += 1
            if failure.error.where not in self.files:
                log.warning("skipped: %s", failure.error)
                manifest, line = failure.entry.place
                audio = ", ".join(relative_name(path, manifest) for path in parts_of(failure.entry))
                self.files[failure.error.where] = {
                    "audio": audio,
                    "manifest": os.path.basename(manifest),
                    "line": line,
                    "reason": failure.error.what,
                }

    def describe(self) -> dict[str, Any]:
        """For `recording.json`: how often an utterance was left out, and each with file, manifest line and reason."""
        return {"utterances": self.utterances, "files": list(self.files.values())}

    def first(self) -> str:
        """The first of them, in a few words."""
        where, file = next(iter(self.files.items()))
        return f"{file['reason']}: {where}"
