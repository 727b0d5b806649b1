"""Writes one recording: beside its target, file by file, and into its place only when complete.

No `recording.json`, no recording: it is written last, and the finished folder then takes the target's place by
renaming, so a killed run leaves either the old recording or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.nested import tensors
from nest_ssl.recording import layout as files

CHUNK = 1 << 22  # bytes hashed at a time


class RecordingWriter:
    """A recording in the making.

    Args:
        target: the folder that the finished recording takes the place of.
        overwrite: whether an earlier recording there may be replaced.

    Raises:
        UserError: the target holds an earlier recording and `overwrite` is off, holds something that is no recording,
            or cannot be written.
    """

    def __init__(self, target: Path | str, overwrite: bool = False) -> None:
        self.target = Path(target).absolute()
        check_target(self.target, overwrite)
        with write_errors(str(self.target)):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.target)
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.partial-", dir=self.target.parent))
            self.folder.chmod(0o777 & ~_umask())
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording-hash")
        self._hashes: dict[str, Future[dict[str, Any]]] = {}
        self._tensors: dict[str, Future[dict[str, Any]]] = {}

    def save_tensors(self, name: str, value: Any) -> None:
        """Write nested tensors and builtins with `torch.save`; their digests go to the index."""
        with self._writing(name) as path:
            torch.save(value, path)
        self._tensors[name] = self._hasher.submit(_describe_tensors, path)

    def save_json(self, name: str, value: Any) -> None:
        with self._writing(name) as path:
            path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")

    def save_text(self, name: str, text: str) -> None:
        with self._writing(name) as path:
            path.write_text(text, encoding="utf-8")

    def save_builtins(self, name: str, value: Any) -> None:
        """Write plain builtins with `pickle` (the name `model_structure.pkl` is a contract)."""
        with self._writing(name) as path:
            path.write_bytes(pickle.dumps(value, protocol=4))

    def finish(self, index: dict[str, Any]) -> Path:
        """Write `recording.json` and put the recording in its place; returns the place."""
        index = {"schema": files.SCHEMA, **index}
        index["tensors"] = {name: future.result() for name, future in self._tensors.items()}
        index["files"] = {name: future.result() for name, future in self._hashes.items()}
        self._hasher.shutdown()
        with write_errors(str(self.target)):
            _write_atomically(self.folder / files.INDEX, json.dumps(index, indent=1) + "\n")
            _take_place(self.folder, self.target)
        return self.target

    def abort(self) -> None:
        """Drop what was written; an earlier recording in the target's place is left as it was."""
        self._hasher.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        assert name not in self._hashes, f"{name} is written twice"
        path = self.folder / name
        with write_errors(f"{self.target / name}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        self._hashes[name] = self._hasher.submit(_describe_file, path)


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before anything is run, a target that must not be replaced.

    Raises:
        UserError: see `RecordingWriter`.
    """
    with write_errors(str(target)):
        if not target.exists():
            return
        if not target.is_dir():
            raise UserError("the output folder is a file", str(target), "Choose another output_dir.")
        if (target / files.INDEX).exists():
            if not overwrite:
                raise UserError(
                    "an earlier recording is there",
                    str(target),
                    "Pass overwrite=true to replace it, or choose another output_dir.",
                )
        elif any(target.iterdir()):
            raise UserError(
                "the output folder holds files that are no recording",
                str(target),
                "Choose an empty or new output_dir; nothing was deleted.",
            )


def remove_leftovers(target: Path) -> None:
    """Delete half-written folders that killed runs left beside `target`, unless one is younger than a day.

    A younger one may belong to a run that is still going.
    """
    for folder in target.parent.glob(f".{target.name}.partial-*"):
        with _ignored_os_errors():
            if time.time() - folder.stat().st_mtime > 86_400:
                shutil.rmtree(folder, ignore_errors=True)


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's raw bytes in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data if flat.numel() else b"").hexdigest()


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _describe_file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _describe_tensors(path: Path) -> dict[str, Any]:
    """Digests of what the file holds: the values in memory may be the model's own and change meanwhile."""
    value = torch.load(path, weights_only=True, mmap=True)
    seen: dict[int, str] = {}  # one tensor may stand in many places: hash it once

    def digest(tensor: torch.Tensor) -> str:
        if id(tensor) not in seen:
            seen[id(tensor)] = tensor_digest(tensor)
        return seen[id(tensor)]

    return {place: describe_tensor(leaf) | {"digest": digest(leaf)} for place, leaf in tensors(value)}


def describe_tensor(tensor: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _take_place(folder: Path, target: Path) -> None:
    """Rename `folder` to `target`; an earlier recording is moved aside first and deleted last."""
    if not target.exists():
        os.rename(folder, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.replaced-", dir=target.parent)) / target.name
    os.rename(target, aside)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(aside, target)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _ignored_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        return
