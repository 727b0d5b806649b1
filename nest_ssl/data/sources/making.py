"""A manifest written again as tar files, or as Lhotse's shar: the same utterances in fewer and larger files.

Audio is copied as it is, not decoded. Everything that is written follows from what is read: no times, no owners.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.files import partial_path, remove_leftovers, replace_folder
from nest_ssl.data.lines import Entry
from nest_ssl.data.manifest import Manifest, parts_of

KINDS = ("tarred", "shar")
MANIFEST = "tarred_audio_manifest.json"  # the name by which NeMo knows a tarred set
READY = "Choose a folder that is not there yet, or --overwrite."


def convert(manifest: Manifest[Entry], kind: str, folder: Path, shards: int, overwrite: bool = False) -> dict[str, Any]:
    """Write a manifest's utterances as `kind` into `folder`, which appears when all is written.

    Returns:
        The keys of a data section that read what was written.

    Raises:
        UserError: the folder is there; fewer utterances than shards; audio that cannot be read; a full disk.
    """
    if folder.exists() and not overwrite:
        raise UserError("the folder is there already", str(folder), READY)
    if not 1 <= shards <= len(manifest.lines):
        what = f"{len(manifest.lines)} utterances cannot fill {shards} shards"
        raise UserError(what, manifest.path, "Give --shards from 1 to the number of utterances.")
    remove_leftovers(folder)
    place = partial_path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        groups = [manifest.lines[number::shards] for number in range(shards)]
        if kind == "tarred":
            write_tarred(groups, place)
        else:
            write_shar(groups, place)
        replace_folder(place, folder)
    except OSError as error:
        raise from_os_error(error, str(folder)) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return section_of(kind, folder, shards)


def section_of(kind: str, folder: Path, shards: int) -> dict[str, Any]:
    """The keys of a data section that read what `convert` has written."""
    if kind == "shar":
        return {"use_lhotse": True, "shar_path": str(folder)}
    tars = folder / (f"audio__OP_0..{shards - 1}_CL_.tar" if shards > 1 else "audio_0.tar")
    return {"is_tarred": True, "manifest_filepath": str(folder / MANIFEST), "tarred_audio_filepaths": str(tars)}


def write_tarred(groups: Sequence[Sequence[Entry]], folder: Path) -> None:
    """`audio_N.tar`, a manifest of all of them, and one of each."""
    names = _flat_names([entry for group in groups for entry in group])
    (folder / "sharded_manifests").mkdir()
    everything = []
    for number, group in enumerate(groups):
        lines = []
        written: set[str] = set()
        with tarfile.open(folder / f"audio_{number}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for entry in sorted(group, key=lambda entry: names[source_of(entry)]):  # lines of one file side by side
                name = names[source_of(entry)]
                if name not in written:
                    content = Path(source_of(entry)).read_bytes()
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    written.add(name)
                line = {"audio_filepath": name, "duration": entry.duration, "text": "", "shard_id": number}
                lines.append(json.dumps(line if entry.offset is None else {**line, "offset": entry.offset}) + "\n")
        (folder / f"sharded_manifests/manifest_{number}.json").write_text("".join(lines), encoding="utf-8")
        everything += lines
    (folder / MANIFEST).write_text("".join(everything), encoding="utf-8")


def write_shar(groups: Sequence[Sequence[Entry]], folder: Path) -> None:
    """`cuts.NNNNNN.jsonl` and `recording.NNNNNN.tar`, by Lhotse."""
    from lhotse import Recording
    from lhotse.shar.utils import to_shar_placeholder
    from lhotse.shar.writers.audio import AudioTarWriter
    from lhotse.shar.writers.cut import JsonlShardWriter
    from lhotse.utils import fastcopy

    names = _flat_names([entry for group in groups for entry in group])
    for number, group in enumerate(groups):
        with (
            JsonlShardWriter(str(folder / f"cuts.{number:06d}.jsonl"), shard_size=None) as manifest,
            AudioTarWriter(str(folder / f"recording.{number:06d}.tar"), shard_size=None, format="wav") as tar,
        ):
            for entry in group:
                recording = Recording.from_file(source_of(entry), recording_id=Path(names[source_of(entry)]).stem)
                cut = recording.to_cut()
                if entry.offset or entry.duration:
                    cut = cut.truncate(offset=entry.offset or 0.0, duration=entry.duration, preserve_id=True)
                if entry.offset:
                    cut.id = f"{cut.id}-{round(entry.offset * 100):06d}"
                placed = to_shar_placeholder(recording, cut)
                tar.write(cut.id, cut.load_audio(), cut.sampling_rate, manifest=placed, original_format="wav")
                manifest.write(fastcopy(cut, recording=placed, start=0.0))


def source_of(entry: Entry) -> str:
    """The file that an entry is a piece of.

    Raises:
        UserError: there are several.
    """
    files = parts_of(entry)
    if len(files) > 1:
        raise UserError("several files for an utterance", str(entry.place), "Join them to one file first.")
    return files[0]


def _flat_names(entries: Sequence[Entry]) -> dict[str, str]:
    """A name without folders, and with no dot but the suffix's, for each file: as webdataset needs it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for entry in entries:
        source = Path(source_of(entry))
        if str(source) in names:
            continue
        stem = source.stem.replace(".", "_")
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{source.parent.name}_{stem}" if number == 2 else f"{stem}_{number}"
        taken.add(name)
        names[str(source)] = name + source.suffix
    return names
