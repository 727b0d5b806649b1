"""Checkpoint files: written whole or not at all, and the newest whole one found again.

A checkpoint is Lightning's, with our `KEY` beside Lightning's own keys, and no code of it runs when it is read. It is
written under a hidden name, forced to the disk and renamed, so a kill or a full disk leaves the earlier ones as they
were. Where files come from elsewhere, a damaged one is told by the checksums inside it.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.safe_load import settings_allowed

KEY = "nest_ssl"  # of what we add to a checkpoint
PARTIAL = ".partial"  # ends the name of a file that is being written
DAMAGED = (RuntimeError, ValueError, OSError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; reads tensors, builtins and settings only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint`; whatever stood at `path` is replaced at once or not at all.

        Raises:
            UserError: it cannot be written, e.g. the disk is full.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}{PARTIAL}")
        with write_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write(checkpoint, partial)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
        with settings_allowed():
            return torch.load(path, map_location=map_location, weights_only=True)


@dataclass(frozen=True)
class Found:
    """A checkpoint to resume from.

    Args:
        path: the file.
        batches: training batches behind it, from the very beginning.
        steps: optimizer steps behind it.
        exact: whether it holds what the same bits take (it is ours).
    """

    path: Path
    batches: int
    steps: int
    exact: bool


def newest_whole(folder: Path) -> tuple[Found | None, list[str]]:
    """The checkpoint in `folder` that is furthest into training, and a line for each damaged one passed over.

    Raises:
        UserError: there are checkpoints and every one is damaged.
    """
    said: list[str] = []
    candidates = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            candidates.append((_progress(_peek(path)), path.stat().st_mtime_ns, path))
        except DAMAGED as error:
            said.append(str(_unusable(path, error)))
    for _, _, path in sorted(candidates, reverse=True):
        try:
            return examine(path), said
        except UserError as error:
            said.append(str(error))
    if said:
        where = f"{folder} ({said[0]})"
        fix = "Remove the damaged files to begin anew, or give another exp_manager.exp_dir."
        raise UserError("no checkpoint can be used", where, fix)
    return None, []


def examine(path: Path) -> Found:
    """What `path` holds, once every byte of it agrees with its checksums.

    Raises:
        UserError: no such file, a damaged one, or one that holds only a model.
    """
    if not path.is_file():
        raise UserError("no such checkpoint", str(path), "Check exp_manager.resume_from_checkpoint.")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise zipfile.BadZipFile(f"{broken} does not match its checksum")
        checkpoint = _peek(path)
    except DAMAGED as error:
        raise _unusable(path, error) from error
    if "optimizer_states" not in checkpoint:
        raise UserError("a checkpoint of the model alone", str(path), "Training resumes from a full one only.")
    batches, steps = _progress(checkpoint)
    return Found(path, batches, steps, KEY in checkpoint)


def check_fits(path: Path, model: nn.Module) -> None:
    """Refuse a checkpoint of another model, before Lightning fails on it.

    Raises:
        UserError: names the first parameter or buffer that one of the two lacks or that has another shape.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in _peek(path)["state_dict"].items()}
    for name in [*ours, *saved]:
        if ours.get(name) != saved.get(name):
            there, here = (f"{list(s[name])}" if name in s else "nothing" for s in (saved, ours))
            where = f"{path}: {name} is {there} in it and {here} in this model"
            fix = "Resume with the model settings it was saved with, or give another exp_manager.exp_dir."
            raise UserError("the checkpoint is of another model", where, fix)


def remove_partial(folder: Path) -> None:
    """Delete what a killed run was writing in `folder`."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
    torch.save(checkpoint, path)
    with path.open("rb") as stream:  # torch's own writer is faster than a Python file; its data is synced here
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _peek(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay on the disk."""
    with settings_allowed():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _progress(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """Training batches and optimizer steps behind a checkpoint."""
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    return int(batches), int(checkpoint["global_step"])


def _unusable(path: Path, error: Exception) -> UserError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
        return UserError(
            "a checkpoint of another trainer", f"{path} ({why})", "Begin with its weights: init_from_ptl_ckpt."
        )
    return UserError("a damaged checkpoint", f"{path} ({why})", "Resume from another one.")
