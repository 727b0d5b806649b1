"""`data/dummy_ssl`, the practice corpus: its sounds, its manifests, and writing them so that nothing half-done stays.

Every byte is known in advance: `data/dummy_ssl.sha256` holds the SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import wave
from collections.abc import Callable, Mapping
from pathlib import Path

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.files import partial_path, remove_leftovers, replace_folder, sha256_of, write_atomically
from nest_ssl.practice import synth

# Milliseconds. The first two of `train` last exactly 3 s each, so that the default first batch, of two, is not padded.
TRAIN_MS = (3000, 3000, 2105, 4480, 5230, 2750, 3615, 5985, 2340, 4125)
VAL_MS = (3320, 4810)
NOISES: dict[str, tuple[Callable[[int, int], list[int]], int]] = {
    "white": (synth.white_noise, 1280),
    "pink": (synth.pink_noise, 7250),
    "brown": (synth.brown_noise, 4100),
    "machine": (synth.machine_noise, 2560),
}


def build_corpus() -> dict[str, bytes]:
    """Every file of the corpus, by its path in it (with forward slashes)."""
    train = {f"train/utt_{i:02d}.wav": (synth.utterance, 100 + i, ms) for i, ms in enumerate(TRAIN_MS)}
    val = {f"val/utt_{i:02d}.wav": (synth.utterance, 200 + i, ms) for i, ms in enumerate(VAL_MS)}
    noise = {f"noise/{name}.wav": (make, 300 + i, ms) for i, (name, (make, ms)) in enumerate(NOISES.items())}
    sounds = {**train, **val, **noise}
    files = {}
    for path, (make, seed, ms) in sounds.items():
        samples = make(seed, ms * synth.RATE // 1000)
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as out:  # 16-bit mono; the header has 44 bytes and no date
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(synth.RATE)
            out.writeframes(struct.pack(f"<{len(samples)}h", *samples))
        files[path] = buffer.getvalue()
    for name, part, extra in (("train", train, {"text": ""}), ("val", val, {"text": ""}), ("noise", noise, {})):
        lines = [{"audio_filepath": path, "duration": ms / 1000, **extra} for path, (_, _, ms) in part.items()]
        files[f"{name}_manifest.json"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    return files


def read_checksums(path: Path) -> dict[str, str]:
    """A file as `sha256sum` writes it: path -> SHA-256 in hex.

    Raises:
        UserError: the file is not there.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    return {name.lstrip("*"): digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}


def wrong_files(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """The files of the corpus that are missing from `folder` or differ."""
    wrong = []
    for name, digest in sorted(checksums.items()):
        try:
            if sha256_of(folder / name) == digest:
                continue
        except OSError:  # not there, or not to be read: to be written again either way
            pass
        wrong.append(name)
    return wrong


def write_corpus(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """Make the corpus in `folder` unless it is there; what is missing or damaged is written again, the rest left alone.

    Returns:
        The files written; empty when all was there.

    Raises:
        UserError: the folder cannot be written, or this machine made other bytes than the committed checksums.
    """
    wrong = wrong_files(folder, checksums)
    if not wrong:
        return []
    files = build_corpus()
    made = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, digest in sorted({**made, **checksums}.items()):
        if made.get(name) != digest or name not in checksums:
            raise UserError("the generated corpus has other bytes than the committed checksums", name,
                            "Restore nest_ssl/practice/ and data/dummy_ssl.sha256 from the repository.")  # fmt: skip
    try:
        remove_leftovers(folder)
        place = folder if folder.exists() else partial_path(folder)  # a new folder appears with all of them
        try:
            for name in wrong:
                write_atomically(place / name, files[name])
            if place != folder:
                replace_folder(place, folder)
        finally:
            if place != folder:
                shutil.rmtree(place, ignore_errors=True)
    except OSError as error:
        raise from_os_error(error, str(folder)) from error
    still_wrong = wrong_files(folder, checksums)
    if still_wrong:
        raise UserError("what was written reads back differently", str(folder / still_wrong[0]), "Check the disk.")
    return wrong
