"""Checkpoint files: written whole or not at all, and the newest whole one found again.

A checkpoint is Lightning's, with our `KEY` beside Lightning's own keys, and no code of it runs when it is read. It is
written under a hidden name, forced to the disk and renamed, so a kill or a full disk leaves the earlier ones as they
were. Where files come from elsewhere, a damaged one is found by the checksums inside it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import remove_leftovers, replacing
from nest_ssl.base.safe_load import READER_ERRORS, check_zip, opened
from nest_ssl.train.checkpoint.weights import check_state_dict, load_weights, settings_allowed

KEY = "nest_ssl"  # of what we add to a checkpoint
# What Lightning reads of a checkpoint while it restores; where one is missing or of another kind, it fails deep inside.
KINDS = {"epoch": int, "global_step": int, "state_dict": Mapping, "loops": Mapping, "callbacks": Mapping,
         "optimizer_states": list, "lr_schedulers": list, KEY: Mapping}  # fmt: skip
NEEDED = ("global_step", "state_dict", "loops")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; reads tensors, builtins and settings only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint`; whatever stood at `path` is replaced at once or not at all.

        Raises:
            UserError: it cannot be written, e.g. the disk is full.
        """
        with write_errors(str(path)), replacing(Path(path)) as partial:
            torch.save(checkpoint, partial)  # torch's own writer is faster than a Python file

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
        with settings_allowed():
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return checkpoint


@dataclass(frozen=True)
class Found:
    """A checkpoint to resume from.

    Args:
        path: the file.
        batches: training batches behind it, from the very beginning.
        steps: optimizer steps behind it.
        content: everything in it; tensors stay on the disk.
    """

    path: Path
    batches: int
    steps: int
    content: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def exact(self) -> bool:
        """Whether it holds what the same bits take (the port wrote it)."""
        return KEY in self.content


def newest_whole(folder: Path) -> tuple[Found | None, list[str]]:
    """The checkpoint in `folder` that is furthest into training, and a line for each damaged one passed over.

    Raises:
        UserError: there are checkpoints and every one is damaged.
    """
    passed_over: list[str] = []
    candidates = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            found = _read(path)
            candidates.append((found.batches, found.steps, path.stat().st_mtime_ns, path, found))
        except UserError as error:
            passed_over.append(str(error))
    for *_, found in sorted(candidates, key=lambda candidate: candidate[:4], reverse=True):
        try:
            _check_whole(found.path)
            return found, passed_over
        except UserError as error:
            passed_over.append(str(error))
    if passed_over:
        where = f"{folder} ({passed_over[0]})"
        fix = "Remove the damaged files to start again, or give another exp_manager.exp_dir."
        raise UserError("no checkpoint can be used", where, fix)
    return None, []


def examine(path: Path) -> Found:
    """What `path` holds, once every byte of it agrees with its checksums.

    Raises:
        UserError: no such file, a damaged one, or one that holds only a model.
    """
    if not path.is_file():
        raise UserError("no such checkpoint", str(path), "Check exp_manager.resume_from_checkpoint.")
    _check_whole(path)
    return _read(path)


def check_fits(found: Found, model: nn.Module) -> None:
    """Refuse a checkpoint of another model, before Lightning fails on it.

    Raises:
        UserError: names the first parameter or buffer that one of the two lacks or that has another shape.
    """
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    saved = {name: tuple(tensor.shape) for name, tensor in found.content["state_dict"].items()}
    for name in [*built, *saved]:
        if built.get(name) != saved.get(name):
            there, here = (f"{list(s[name])}" if name in s else "nothing" for s in (saved, built))
            where = f"{found.path}: {name} is {there} in it and {here} in this model"
            fix = "Resume with the model settings it was saved with, or give another exp_manager.exp_dir."
            raise UserError("the checkpoint is of another model", where, fix)


def remove_partial(folder: Path) -> None:
    """Delete what killed runs were writing in `folder`; what a living process writes stays."""
    for path in folder.glob(".*.partial-*"):
        remove_leftovers(folder / path.name[1:].rpartition(".partial-")[0])


def _check_whole(path: Path) -> None:
    try:
        with opened(path) as stream:
            check_zip(stream, str(path))
    except (zipfile.BadZipFile, *READER_ERRORS) as error:
        raise _unusable(path, str(error)) from error


def _read(path: Path) -> Found:
    """Its content, each part of the kind that Lightning restores from.

    Raises:
        UserError: it cannot be read, or a part is of another kind or missing.
    """
    try:
        content = load_weights(path, mapped=True)
    except UserError as error:
        if error.what.startswith("it holds "):
            fix = "Begin with its weights: init_from_ptl_ckpt."
            raise UserError(f"a checkpoint of another trainer, {error.what}", str(path), fix) from error
        raise _unusable(path, error.where.removeprefix(str(path)).strip(" ()")) from error
    if not isinstance(content, Mapping):
        raise _unusable(path, f"it is a {type(content).__name__}")
    if "optimizer_states" not in content:
        raise UserError("a checkpoint of the model alone", str(path), "Training resumes from a full one only.")
    for key, kind in KINDS.items():
        value = content.get(key)
        if (value is None and key in NEEDED) or not (value is None or isinstance(value, kind)):
            raise _unusable(path, f"{key} is {type(value).__name__}")
    check_state_dict(content["state_dict"], f"{path}, state_dict")
    try:
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        return Found(path, int(batches), int(content["global_step"]), content)
    except READER_ERRORS as error:
        raise _unusable(path, "loops do not say how far it is") from error


def _unusable(path: Path, why: str) -> UserError:
    return UserError("a damaged checkpoint", f"{path} ({why})" if why else str(path), "Resume from another one.")
