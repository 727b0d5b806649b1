"""Manifests: one JSON object a line, each a piece of an audio file.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.common.parts.preprocessing.manifest` and `.collections`
(speech), `nemo.collections.asr.parts.utils.manifest_utils` (noise).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

from nest_ssl.base.errors import UserError, from_os_error

LONGEST_RELATIVE = 255  # characters; a longer path is never taken relative to the manifest


class Place(NamedTuple):
    """A line of a manifest, counted from 1."""

    manifest: str
    line: int

    def __str__(self) -> str:
        return f"{self.manifest}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A piece of speech.

    Args:
        audio_file: path, or paths of single-channel files that together make one recording.
        duration: seconds to read from `offset`; None, 0 or less: to the end.
        offset: seconds from the start; None is 0.
        place: the line that names it.
    """

    audio_file: str | list[str]
    duration: float | None
    offset: float | None
    place: Place


@dataclass(frozen=True, slots=True)
class NoiseClip:
    """A piece of noise. Duration and offset stay as written: NeMo looks at them only when it draws the clip."""

    audio_file: str | list[str]
    duration: Any
    offset: Any
    place: Place


def manifest_paths(value: Any) -> list[str]:
    """The manifests that a config value names: a path, several joined by commas, or a list.

    Raises:
        UserError: not a path or a list of paths.
    """
    paths = value.split(",") if isinstance(value, str) else value
    if not isinstance(paths, Sequence) or not all(isinstance(p, (str, Path)) for p in paths):
        raise UserError("not a manifest", repr(value), "Give a path, paths joined by commas, or a list of paths.")
    return [str(p) for p in paths]


def read_speech(manifests: Sequence[str], shortest: float | None = None, longest: float | None = None) -> list[Entry]:
    """The entries of all manifests, in order, that last from `shortest` to `longest` seconds (None: no limit).

    Entries of unknown duration always stay.

    Raises:
        UserError: a manifest that is not there; a line that cannot be used (file and number are told); nothing left.
    """
    entries = [_speech_entry(item, place) for item, place in _items(manifests, expand_home=True)]
    kept = [entry for entry in entries if _lasts(entry.duration, shortest, longest)]
    if not entries:
        fix = 'Write lines like {"audio_filepath": "a.wav", "duration": 1.0}.'
        raise UserError("an empty manifest", ",".join(manifests) or "manifest_filepath=[]", fix)
    if not kept:
        limits = f"min_duration={shortest}, max_duration={longest}"
        raise UserError(f"none of {len(entries)} entries lasts as long as asked ({limits})", ",".join(manifests),
                        "Change the limits or the manifest.")  # fmt: skip
    return kept


def read_noise(manifests: Sequence[str]) -> list[NoiseClip]:
    """All noise clips of all manifests, in order.

    Raises:
        UserError: as `read_speech`.
    """
    return [_noise_clip(item, place) for item, place in _items(manifests, expand_home=False)]


def full_path(audio_file: str | list[str], manifest: str) -> str | list[str]:
    """Where an audio file of a manifest lies: below the manifest's folder if it is there, else as written.

    Raises:
        ValueError: not a path or a list of paths.
        UserError: a URL; object stores are not supported.
    """
    if isinstance(audio_file, list):
        return [str(full_path(part, manifest)) for part in audio_file]
    if not isinstance(audio_file, str):
        raise ValueError(f"{audio_file!r} is not a path")
    if is_url(audio_file):
        raise UserError("audio in an object store", audio_file, "Copy it to a disk and name the copy.")
    if _in_tarred_set(audio_file, manifest):
        return audio_file
    if len(audio_file) < LONGEST_RELATIVE and not os.path.isabs(audio_file):
        below_manifest = os.path.join(os.path.dirname(manifest), audio_file)
        if os.path.isfile(below_manifest):
            return os.path.abspath(below_manifest)
    return os.path.expanduser(audio_file)


def is_url(path: str) -> bool:
    """Whether NeMo would look for it in an object store: anything like scheme://host/..."""
    parts = urlparse(path)
    return bool(parts.scheme) and bool(parts.netloc)


# --- lines ------------------------------------------------------------------------------------------------------------


def _items(manifests: Sequence[str], *, expand_home: bool) -> Iterator[tuple[dict[str, Any], Place]]:
    """Every line's object and its place. Blank lines are skipped; `~` is the home folder for speech manifests only."""
    for manifest in manifests:
        if is_url(manifest):
            raise UserError("a manifest in an object store", manifest, "Copy it to a disk and name the copy.")
        try:
            with open(os.path.expanduser(manifest) if expand_home else manifest, encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        place = Place(manifest, number)
                        yield _parse(line.strip(), place), place
        except FileNotFoundError as error:
            fix = "Check the path; `make data` writes data/dummy_ssl."
            raise UserError("no such manifest", manifest or "''", fix) from error
        except UnicodeDecodeError as error:
            raise UserError("a manifest that is not UTF-8 text", manifest, "Write one JSON object a line.") from error
        except OSError as error:
            raise from_os_error(error, manifest) from error


def _parse(line: str, place: Place) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"not JSON ({error.msg}, column {error.colno})"
        raise UserError(what, str(place), "Write one JSON object a line.") from error
    if not isinstance(item, dict):
        raise UserError("not a JSON object", str(place), 'Write {"audio_filepath": ..., "duration": ...}.')
    return item


def _speech_entry(item: dict[str, Any], place: Place) -> Entry:
    audio_file = _resolve(item.get("audio_filename", item.get("audio_filepath")), place)
    return Entry(audio_file, _seconds(item, "duration", place), _seconds(item, "offset", place), place)


def _lasts(duration: float | None, shortest: float | None, longest: float | None) -> bool:
    if duration is None:
        return True
    return not (shortest is not None and duration < shortest) and not (longest is not None and duration > longest)


def _noise_clip(item: dict[str, Any], place: Place) -> NoiseClip:
    return NoiseClip(_resolve(item.get("audio_filepath"), place), item.get("duration"), item.get("offset", 0.0), place)


def _resolve(audio_file: Any, place: Place) -> str | list[str]:
    if audio_file is None:
        raise UserError("no audio_filepath", str(place), "Name the audio file of this line.")
    try:
        return full_path(audio_file, place.manifest)
    except ValueError as error:
        raise UserError("audio_filepath is not a path", str(place), "Write it as a string.") from error


def _seconds(item: dict[str, Any], key: str, place: Place) -> float | None:
    value = item.get(key)
    if value is None or isinstance(value, (int, float)):
        return value
    raise UserError(f"{key} is not a number", str(place), f"Give {key} in seconds, without quotes.")


def _in_tarred_set(audio_file: str, manifest: str) -> bool:
    """Whether NeMo takes the manifest for one of a tarred set, by its name; it then leaves paths as they are."""
    if "/" in audio_file:
        return False
    name = os.path.basename(manifest)
    in_shards = "/sharded_manifests/" in manifest and re.match(r"^manifest_(\d+)\.json$", name)
    return name == "tarred_audio_manifest.json" or bool(in_shards)
