"""Opens a recording for reading: checked first, then mapped, never unpickled into code.

`open_recording` refuses what is missing, half written or damaged. Tensors are mapped from disk, so a recording of any
size can be walked in little memory.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import yaml

from nest_ssl.base.errors import UserError
from nest_ssl.recording import layout as files
from nest_ssl.recording.writer import file_sha256

RERUN = "Record it again (make nemo, make nest)."


class StepFiles:
    """What was recorded of one training step. Every method maps its file afresh, so drop what you no longer need."""

    def __init__(self, recording: Recording, folder: str) -> None:
        self._recording = recording
        self.folder = folder

    def has(self, name: str) -> bool:
        return f"{self.folder}/{name}" in self._recording.index["files"]

    def batch(self) -> dict[str, Any]:
        return self._load(files.BATCH)

    def forward_output(self) -> dict[str, Any]:
        return self._load(files.FORWARD_OUTPUT)

    def loss(self) -> dict[str, torch.Tensor]:
        return self._load(files.LOSS)

    def gradients(self) -> dict[str, torch.Tensor | None]:
        return self._load(files.GRADIENTS)

    def weights(self) -> dict[str, torch.Tensor]:
        return self._load(files.WEIGHTS)

    def optimizer_state(self) -> dict[str, Any]:
        return self._load(files.OPTIMIZER)

    def rng(self) -> dict[str, Any]:
        """Digests of every generator's state at the step's boundaries, and the ledger of draws."""
        return self._recording.read_json(f"{self.folder}/{files.RNG}")

    def calls(self) -> list[dict[str, Any]]:
        """Every call of every module, in the order in which they started."""
        return self._load(files.CALLS)["calls"]

    def _load(self, name: str) -> Any:
        return self._recording.load(f"{self.folder}/{name}")


class Recording:
    """A finished recording on disk; make one with `open_recording`."""

    def __init__(self, path: Path, index: dict[str, Any]) -> None:
        self.path = path
        self.index = index

    @cached_property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / files.CONFIG).read_text(encoding="utf-8"))

    @cached_property
    def structure(self) -> dict[str, Any]:
        return load_builtins(self.path / files.STRUCTURE)

    @property
    def steps(self) -> list[int]:
        return sorted(int(step) for step in self.index["steps"])

    @property
    def world_size(self) -> int:
        return int(self.index.get("world_size", 1))

    def step(self, number: int, rank: int = 0) -> StepFiles:
        return StepFiles(self, files.step_folder(number, rank, self.world_size))

    def initial_weights(self) -> dict[str, torch.Tensor]:
        return self.load(files.INITIAL_WEIGHTS)

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def load(self, name: str) -> Any:
        """Map one `torch.save` file of tensors and builtins.

        Raises:
            UserError: the file is damaged, or holds anything but tensors and builtins.
        """
        try:
            return torch.load(self.path / name, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
            raise UserError("damaged recording", f"{self.path / name} does not open as tensors", RERUN) from error


def open_recording(path: Path | str, verify: bool = True) -> Recording:
    """Open the recording in folder `path`.

    Args:
        verify: also compare every file's SHA-256 with the index (sizes are always compared).

    Raises:
        UserError: no recording there, half written, damaged, or of another schema.
    """
    path = Path(path)
    recording = Recording(path, _read_index(path))
    for name, entry in recording.index["files"].items():
        _check_size(path, name, entry)
    if verify:
        _check_hashes(recording)
    return recording


def load_builtins(path: Path) -> Any:
    """`pickle.load` that refuses every global, so that nothing read can run code.

    Raises:
        UserError: the file is damaged or names a class or function.
    """
    try:
        return _BuiltinsUnpickler(io.BytesIO(path.read_bytes())).load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError) as error:
        raise UserError("damaged recording", f"{path} ({error})", RERUN) from error


class _BuiltinsUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}; only plain builtins are allowed")


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError("no such recording", str(path), RERUN)
    index_path = path / files.INDEX
    if not index_path.is_file():
        raise UserError("not a complete recording", f"{path} has no {files.INDEX}", RERUN)
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError("damaged recording", f"{index_path} is not JSON ({error})", RERUN) from error
    if not isinstance(index, dict) or index.get("schema") != files.SCHEMA:
        found = index.get("schema") if isinstance(index, dict) else type(index).__name__
        raise UserError("unknown recording schema", f"{index_path} has {found!r}, not {files.SCHEMA!r}", RERUN)
    _check_index_shape(index, index_path)
    return index


def _check_index_shape(index: dict[str, Any], index_path: Path) -> None:
    for key in ("files", "steps", "trainer"):
        if not isinstance(index.get(key), dict):
            raise UserError("damaged recording", f"{index_path} has no {key!r}", RERUN)
    for name in (files.CONFIG, files.STRUCTURE, files.INITIAL_WEIGHTS):
        if name not in index["files"]:
            raise UserError("damaged recording", f"{index_path} does not list {name}", RERUN)


def _check_size(path: Path, name: str, entry: dict[str, Any]) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError("damaged recording", f"{path / files.INDEX} names {name!r}, outside its folder", RERUN)
    try:
        size = (path / name).stat().st_size
    except OSError as error:
        raise UserError("damaged recording", f"{path / name} is missing", RERUN) from error
    if size != entry["bytes"]:
        raise UserError("damaged recording", f"{path / name} has {size:,} bytes, not {entry['bytes']:,}", RERUN)


def _check_hashes(recording: Recording) -> None:
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, right in pool.map(lambda item: _hash_agrees(recording.path, *item), _listed(recording)):
            if not right:
                raise UserError("damaged recording", f"{recording.path / name} differs from its SHA-256", RERUN)


def _hash_agrees(path: Path, name: str, entry: dict[str, Any]) -> tuple[str, bool]:
    return name, file_sha256(path / name) == entry["sha256"]


def _listed(recording: Recording) -> Iterator[tuple[str, dict[str, Any]]]:
    return iter(recording.index["files"].items())
