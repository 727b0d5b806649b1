"""Manifests: one JSON object a line, each a piece of an audio file.

Source of the behaviour: NeMo 3.0.0 `nemo.collections.common.parts.preprocessing.manifest` and `.collections`
(speech), `nemo.collections.asr.parts.utils.manifest_utils` (noise). What NeMo cannot train on is refused here, and so
are seconds that it would take for something else (NaN, negative, true).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar
from urllib.parse import urlparse

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.files import is_regular
from nest_ssl.data.files import FileState, where_to_look
from nest_ssl.data.lines import Entry, Lines, Place

LONGEST_RELATIVE = 255  # characters; a longer path is never taken relative to the manifest
READ_AT_ONCE = 1 << 20  # bytes of a manifest
MOST_SECONDS = 1e9  # 31 years; more is no place in a recording, and overflows when counted in samples


@dataclass(frozen=True, slots=True)
class NoiseClip:
    """A piece of noise. Duration and offset stay as written: NeMo looks at them only when it draws the clip."""

    audio_file: str | list[str]
    duration: Any
    offset: Any
    place: Place


Line = TypeVar("Line", Entry, NoiseClip)


@dataclass(frozen=True)
class Manifest(Generic[Line]):
    """A manifest as it was read, once.

    Args:
        path: as the configuration has it.
        lines: what its lines name, in order.
        sha256: of the bytes that were parsed.
        file: where they were read from, and its state then.
    """

    path: str
    lines: Sequence[Line]
    sha256: str
    file: tuple[str, FileState | None]


def manifest_paths(value: Any) -> list[str]:
    """The manifests that a config value names: a path, several joined by commas, or a list.

    Raises:
        UserError: not a path or a list of paths.
    """
    paths = value.split(",") if isinstance(value, str) else value
    if not isinstance(paths, Sequence) or not all(isinstance(p, (str, Path)) for p in paths):
        raise UserError("not a manifest", repr(value), "Give a path, paths joined by commas, or a list of paths.")
    return [str(p) for p in paths]


def read_speech(path: str, transcripts: bool = False) -> Manifest[Entry]:
    """A manifest of utterances; `~` is the home folder.

    Args:
        path: of the manifest.
        transcripts: whether the lines' texts are kept. NeMo's reader of these asks for a duration, too.

    Raises:
        UserError: it is not there, or is no regular file; a line that cannot be used (with file and number).
    """

    def entry(item: dict[str, Any], place: Place) -> Entry:
        audio_file = _audio_files(item.get("audio_filename", item.get("audio_filepath")), place)
        text = _transcript(item, place) if transcripts else ""
        return Entry(audio_file, _seconds(item, "duration", place), _seconds(item, "offset", place), place, text)

    def entries(items: Iterator[tuple[dict[str, Any], Place]]) -> Lines:
        return Lines(path, (entry(*each) for each in items), transcripts)

    return _read_manifest(path, os.path.expanduser(path), entries)


def read_noise(path: str) -> Manifest[NoiseClip]:
    """A manifest of noise clips; `~` is a name like others, as in NeMo.

    Raises:
        UserError: as `read_speech`.
    """

    def clip(item: dict[str, Any], place: Place) -> NoiseClip:
        audio_file = _audio_files(item.get("audio_filepath"), place)
        return NoiseClip(audio_file, item.get("duration"), item.get("offset", 0.0), place)

    return _read_manifest(path, path, lambda items: [clip(*each) for each in items])


def full_path(audio_file: str, manifest: str) -> str:
    """Where an audio file of a manifest lies: below the manifest's folder if it is there, else as written.

    Raises:
        UserError: a URL; object stores are not supported.
    """
    if is_url(audio_file):
        raise UserError("audio in an object store", audio_file, "Copy it to a disk and name the copy.")
    if "/" not in audio_file:
        name = os.path.basename(manifest)
        in_shards = "/sharded_manifests/" in manifest and re.match(r"^manifest_(\d+)\.json$", name)
        if name == "tarred_audio_manifest.json" or in_shards:
            return audio_file  # NeMo takes the manifest, by its name, for one of a tarred set
    if len(audio_file) < LONGEST_RELATIVE and not os.path.isabs(audio_file):
        below_manifest = os.path.join(os.path.dirname(manifest), audio_file)
        if os.path.isfile(below_manifest):
            return os.path.abspath(below_manifest)
    return os.path.expanduser(audio_file)


def parts_of(line: Entry | NoiseClip) -> list[str]:
    """The paths of the files that make one recording."""
    return line.audio_file if isinstance(line.audio_file, list) else [line.audio_file]


def is_url(path: str) -> bool:
    """Whether NeMo would look for it in an object store: anything like scheme://host/..."""
    if ":" not in path:  # asked for each line of a manifest, and urlparse takes as long as parsing the line
        return False
    try:
        parts = urlparse(path)
    except ValueError:  # brackets that are no IPv6 address
        return False
    return bool(parts.scheme) and bool(parts.netloc)


def is_seconds(value: Any) -> bool:
    """Whether it is a number of seconds from 0 that can be counted in samples."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MOST_SECONDS


# --- lines ------------------------------------------------------------------------------------------------------------


def _read_manifest(
    path: str, location: str, parse: Callable[[Iterator[tuple[dict[str, Any], Place]]], Sequence[Line]]
) -> Manifest[Line]:
    if is_url(path):
        raise UserError("a manifest in an object store", path, "Copy it to a disk and name the copy.")
    fix = "Check the path; `make data` writes data/dummy_ssl, with KIND=K also what conf/kind/K.yaml names."
    try:
        if os.path.exists(location) and not is_regular(location):
            raise UserError("a manifest that is not a regular file", path, fix)
        with open(location, "rb") as file:
            state = FileState.of(os.fstat(file.fileno()))
            hashed = Hashed(file if state.size else io.BytesIO())  # files of /proc have no size, and may not end
            lines = parse(_items(io.BufferedReader(hashed, READ_AT_ONCE), path))
            return Manifest(path, lines, hashed.digest.hexdigest(), (location, state))
    except UnicodeDecodeError as error:
        raise UserError("a manifest that is not UTF-8 text", path, "Write one JSON object a line.") from error
    except FileNotFoundError as error:
        raise UserError("no such manifest", path or "''", where_to_look(fix)) from error
    except ValueError as error:  # a character that no path can have
        raise UserError("not the path of a manifest", repr(path), fix) from error
    except OSError as error:
        raise from_os_error(error, path) from error


class Hashed(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        self.digest.update(content)
        return len(content)


def _items(file: io.BufferedReader, path: str) -> Iterator[tuple[dict[str, Any], Place]]:
    """Every line's object and its place; blank lines are skipped."""
    if file.peek(3).startswith(b"\xef\xbb\xbf"):
        fix = "Save the file as UTF-8 without it (in an editor: UTF-8, not UTF-8 with BOM)."
        raise UserError("a manifest that begins with a byte-order mark", path, fix)
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8"), start=1):
        if not line.strip():
            continue
        place, fix = Place(path, number), "Write one JSON object a line."
        try:
            item = json.loads(line.strip())
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON ({error.msg}, column {error.colno})", str(place), fix) from error
        except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
            raise UserError("JSON that is too long or too deep to be read", str(place), fix) from error
        if not isinstance(item, dict):
            raise UserError("not a JSON object", str(place), 'Write {"audio_filepath": ..., "duration": ...}.')
        yield item, place


def _audio_files(value: Any, place: Place) -> str | list[str]:
    if value is None:
        raise UserError("no audio_filepath", str(place), "Name the audio file of this line.")
    parts = value if isinstance(value, list) and value else [value]
    for part in parts:
        if not isinstance(part, str):
            raise UserError("audio_filepath is not a path", str(place), "Write it as a string.")
        try:
            has_bad_character = b"\0" in os.fsencode(part)
        except UnicodeError:  # JSON may hold half of a surrogate pair
            has_bad_character = True
        if has_bad_character:
            raise UserError("audio_filepath has a character that no path can have", str(place), "Correct it.")
        if is_url(part):
            raise UserError("audio in an object store", f"{part} ({place})", "Copy it to a disk and name the copy.")
    found = [full_path(part, place.manifest) for part in parts]
    return found if isinstance(value, list) else found[0]


def _seconds(item: dict[str, Any], key: str, place: Place) -> float | None:
    value = item.get(key)
    if value is None or is_seconds(value):
        return value
    if isinstance(value, (str, list, dict)):
        raise UserError(f"{key} is not a number", str(place), f"Give {key} in seconds, without quotes.")
    fix = f"Give {key} in seconds, from 0 to {MOST_SECONDS:,.0f}; or leave it out."
    raise UserError(f"{key} is not a number of seconds", str(place), fix)


def _transcript(item: dict[str, Any], place: Place) -> str:
    """A line's text, as NeMo's reader of transcripts finds it.

    Raises:
        UserError: no duration, at which that reader stops; a text that is elsewhere, or tokens.
    """
    if "duration" not in item:
        raise UserError("no duration", str(place), "Give it in seconds; null for the whole file.")
    for key in ("token_labels", "text_filepath"):
        if item.get(key) is not None and (key != "text_filepath" or "text" not in item):
            raise UserError(f"{key} is not read", str(place), "Write the transcript as text, or leave it out.")
    text = item.get("text", item.get("normalized_text", ""))
    if not isinstance(text, str):
        raise UserError("text is not a string", str(place), "Write it as one, or leave it out.")
    return text
