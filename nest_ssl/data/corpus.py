"""What a data section trains on: the manifests, each read and parsed once in a run, and what the limits leave of them.

`Corpora` is handed from the check before training to the loaders and to the record of the data, so that all three see
the same bytes, whatever happens to the manifests meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.data.manifest import Entry, Manifest, NoiseClip, manifest_paths, read_noise, read_speech


@dataclass(frozen=True)
class Corpus:
    """Speech and noise of one section.

    Args:
        manifests: of speech, in order.
        noise_manifests: in order; None where the section names none.
        entries: the utterances that the limits leave.
        clips: all noise clips.
        shorter, longer: how many utterances lie outside the limits.
        shortest, longest: the limits in seconds, None for no limit.
    """

    manifests: Sequence[Manifest[Entry]]
    noise_manifests: Sequence[Manifest[NoiseClip]] | None
    entries: Sequence[Entry]
    clips: Sequence[NoiseClip]
    shorter: int = 0
    longer: int = 0
    shortest: float | None = None
    longest: float | None = None

    def left_out(self) -> str | None:
        """A sentence about the utterances that lie outside the limits; None if there are none."""
        limits = [(self.shorter, f"shorter than min_duration={self.shortest}"),
                  (self.longer, f"longer than max_duration={self.longest}")]  # fmt: skip
        parts = [f"{count:,} {limit}" for count, limit in limits if count]
        if not parts:
            return None
        total = len(self.entries) + self.shorter + self.longer
        return f"{self.shorter + self.longer:,} of {total:,} utterances are left out: {', '.join(parts)}"


class Corpora:
    """The corpora of a run; a manifest that several sections or loaders name is read once."""

    def __init__(self) -> None:
        self._speech: dict[str, Manifest[Entry]] = {}
        self._noise: dict[str, Manifest[NoiseClip]] = {}

    def read(self, dataset: Dataset) -> Corpus:
        """What a section trains on: the utterances within its limits (of unknown duration: all), and the noise.

        Raises:
            UserError: a manifest that is not there; a line that cannot be used (with file and number); nothing left.
        """
        manifests = manifest_paths(dataset.manifest_filepath)
        noise_manifests = None if dataset.noise_manifest is None else manifest_paths(dataset.noise_manifest)
        shortest, longest = dataset.min_duration, dataset.max_duration
        speech = [self._speech.get(path) or self._speech.setdefault(path, read_speech(path)) for path in manifests]
        noise = [self._noise.get(p) or self._noise.setdefault(p, read_noise(p)) for p in noise_manifests or ()]
        kept: list[Entry] = []
        shorter = longer = 0
        for entry in (entry for manifest in speech for entry in manifest.lines):
            if entry.duration is not None and shortest is not None and entry.duration < shortest:
                shorter += 1
            elif entry.duration is not None and longest is not None and entry.duration > longest:
                longer += 1
            else:
                kept.append(entry)
        if not kept:
            where = ",".join(manifests) or "manifest_filepath=[]"
            if not shorter + longer:
                fix = 'Write lines like {"audio_filepath": "a.wav", "duration": 1.0}.'
                raise UserError("an empty manifest", where, fix)
            limits = f"min_duration={shortest}, max_duration={longest}"
            what = f"none of {shorter + longer} entries lasts as long as asked ({limits})"
            raise UserError(what, where, "Change the limits or the manifest.")
        clips = [clip for manifest in noise for clip in manifest.lines]
        noise_read = None if noise_manifests is None else noise
        return Corpus(speech, noise_read, kept, clips, shorter, longer, shortest, longest)
