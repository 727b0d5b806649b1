"""Which bytes a run was trained on: hashes of the manifests and of the audio files that they name.

Names are relative to the manifest's folder, with forward slashes, so that two machines with the same data agree.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nest_ssl.data.manifest import Entry, NoiseClip, manifest_paths, read_noise, read_speech
from nest_ssl.data.settings import plain

HASHED_IN_FULL = 2_000  # files; of larger corpora the size, the first and the last MiB of each
MIB = 1 << 20


def fingerprint(section: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a section.

    Args:
        section: NeMo's `train_ds` or `validation_ds`, checked.

    Returns:
        ``{"manifests": [{"name", "sha256"}], "audio": {name: sha256}, "audio_hash": "full" | "sampled"}``, and under
        ``"noise"`` the same of the noise manifests, if there are any. A file that cannot be read has None.

    Raises:
        UserError: a manifest that cannot be used.
    """
    given = plain(section)
    manifests = manifest_paths(given["manifest_filepath"])
    speech = read_speech(manifests, given.get("min_duration"), given.get("max_duration"))
    result = _of(manifests, speech)
    if given.get("noise_manifest") is not None:
        noise_manifests = manifest_paths(given["noise_manifest"])
        result["noise"] = _of(noise_manifests, read_noise(noise_manifests))
    return result


def _of(manifests: Sequence[str], entries: Sequence[Entry | NoiseClip]) -> dict[str, Any]:
    files: dict[str, str] = {}  # path -> name
    for entry in entries:
        for path in entry.audio_file if isinstance(entry.audio_file, list) else [entry.audio_file]:
            files.setdefault(path, relative_name(path, entry.place.manifest))
    sampled = len(files) > HASHED_IN_FULL
    hashes = (file_sha256(path, sampled) for path in files)
    return {
        "manifests": [{"name": os.path.basename(m), "sha256": file_sha256(os.path.expanduser(m))} for m in manifests],
        "audio": dict(sorted(zip(_distinct(files.values()), hashes, strict=True))),
        "audio_hash": "sampled" if sampled else "full",
    }


def relative_name(path: str, manifest: str) -> str:
    """A file's name from the folder of the manifest that names it, with forward slashes."""
    if not os.path.isabs(path):
        return Path(path).as_posix()  # as written: it was found from the working folder, or nowhere
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(manifest)))
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of a Windows machine
        return Path(path).as_posix()


def _distinct(names: Iterable[str]) -> list[str]:
    """Two manifests in two folders may name different files alike: the later ones get a number."""
    count: dict[str, int] = {}
    result = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        result.append(name if count[name] == 1 else f"{name}#{count[name]}")
    return result


def file_sha256(path: str, sampled: bool = False) -> str | None:
    """SHA-256 of a file, or of its size and ends; None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            if sampled:
                size = file.seek(0, os.SEEK_END)
                digest.update(b"%d\n" % size)
                for start in (0, max(0, size - MIB)):
                    file.seek(start)
                    digest.update(file.read(MIB))
            else:
                while chunk := file.read(MIB):
                    digest.update(chunk)
    except OSError:
        return None
    return digest.hexdigest()
