"""Which bytes a run was trained on: hashes of the manifests as they were parsed, and of the audio that they name.

They are taken before training. When it has ended, files whose state is another one are hashed again, and those with
other bytes are listed as changed: the hashes are of what was there when training began.

Names are relative to the manifest's folder, with forward slashes, so that two machines with the same data agree. Where
even these differ, `content` says whether the same audio was trained on in the same order.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nest_ssl.data.corpus import Corpus
from nest_ssl.data.files import FileState, file_sha256, relative_name, state_of
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import Manifest, NoiseClip, parts_of
from nest_ssl.data.skipping import SkippedAudio

HASHED_IN_FULL = 2_000  # files; of larger corpora the size, the first and the last MiB of each
LOOKED_AT = 20_000  # lines whose files are hashed; of larger corpora so many at even distances


class DataRecord:
    """The data of a run, hashed when this is made.

    Args:
        corpora: by the name of their section, ``train`` and ``validation``.
    """

    def __init__(self, corpora: Mapping[str, Corpus]) -> None:
        self._speech = {name: _Files(c.manifests, c.entries, c.archives) for name, c in corpora.items()}
        self._noise = {name: _Files(corpus.noise_manifests, corpus.clips) for name, corpus in corpora.items()
                       if corpus.noise_manifests is not None}  # fmt: skip

    def describe(self, skipped: SkippedAudio | None = None) -> dict[str, Any]:
        """For `recording.json`; looks at the files once more.

        Returns:
            For each section ``{"manifests": [{"name", "sha256"}], "audio": {name: sha256}, "audio_hash": "full" |
            "sampled", "content": sha256, "changed": [name]}``, with the same of the noise manifests under ``"noise"``
            if there are any. A file that cannot be read has None. Of more than `LOOKED_AT` lines every n-th one's file
            is here; `content` follows from them, from the names of the others below the folder that all are in, and
            from what all lines say of times. And what was ``"skipped"``, if that was allowed.
        """
        data: dict[str, Any] = {name: files.describe() for name, files in self._speech.items()}
        for name, files in self._noise.items():
            data[name]["noise"] = files.describe()
        return data if skipped is None else {**data, "skipped": skipped.describe()}


class _Files:
    """Some manifests and the audio files of their lines; or the archives in which these lie."""

    def __init__(
        self,
        manifests: Sequence[Manifest[Any]],
        lines: Sequence[Entry | NoiseClip],
        archives: Sequence[str] = (),
    ) -> None:
        self._manifests = manifests
        names: dict[str, str] = {}  # path -> name
        taken: Counter[str] = Counter()
        looked_at = lines[:: max(1, math.ceil(len(lines) / LOOKED_AT))]
        one_each = ((path, line.place.manifest) for line in looked_at for path in parts_of(line))
        beside = manifests[0].path if manifests else os.path.join(os.path.dirname(min(archives, default="")), "")
        for path, manifest in ((path, beside) for path in archives) if archives else one_each:
            if path in names:
                continue
            name = relative_name(path, manifest)
            taken[name] += 1
            # Two manifests in two folders may name different files alike: the later ones get a number.
            names[path] = name if taken[name] == 1 else f"{name}#{taken[name]}"
        self._names = names
        self._sampled = len(names) > HASHED_IN_FULL
        self._states = {path: state_of(path) for path in names}
        self._hashes = {path: file_sha256(path, self._sampled) for path in names}
        digest = hashlib.sha256("".join(str(self._hashes[path]) for path in archives).encode())
        # The folder that all are in may be another one elsewhere; what is below it names the files that are not hashed.
        above = 0 if archives or len(looked_at) == len(lines) else _length_of_folder(lines)
        for line in lines:
            hashes = [os.path.basename(p) if archives else self._hashes.get(p, p[above:]) for p in parts_of(line)]
            digest.update(json.dumps([hashes, line.offset or 0, line.duration]).encode() + b"\n")
        self._content = digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        parsed = [(os.path.basename(m.path), *m.file, m.sha256) for m in self._manifests]
        hashed = [(name, path, self._states[path], self._hashes[path]) for path, name in self._names.items()]
        return {
            "manifests": [{"name": os.path.basename(m.path), "sha256": m.sha256} for m in self._manifests],
            "audio": dict(sorted((name, self._hashes[path]) for path, name in self._names.items())),
            "audio_hash": "sampled" if self._sampled else "full",
            "content": self._content,
            "changed": [*_changed(parsed, sampled=False), *sorted(_changed(hashed, self._sampled))],
        }


def _length_of_folder(lines: Sequence[Entry | NoiseClip]) -> int:
    """Characters in the name of the folder that the files of all lines are in; nothing is kept of a line."""
    alike: str | None = None
    for path in (path for line in lines for path in parts_of(line)):
        if alike is None or not path.startswith(alike):
            alike = path if alike is None else os.path.commonprefix([alike, path])  # noqa: RUF071
    return len(os.path.dirname(alike or ""))


def _changed(files: Sequence[tuple[str, str, FileState | None, str | None]], sampled: bool) -> list[str]:
    """The names of those files (name, path, state and hash then) that have another state now, and another hash."""
    return [
        name for name, path, state, sha256 in files if state_of(path) != state and file_sha256(path, sampled) != sha256
    ]
