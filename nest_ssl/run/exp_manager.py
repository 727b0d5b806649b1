"""NeMo's `exp_manager` section: where a training run keeps its checkpoints and logs, and where it goes on.

    exp_dir/name/version/checkpoints/{name}--{val_loss:.4f}-{epoch}.ckpt         the best
                                     {name}--{val_loss:.4f}-{epoch}-last.ckpt    the last
                                     {name}.nemo                                 the model, when training has ended

It takes effect where it names a folder (`exp_dir` or `explicit_log_dir`); otherwise nothing but the recording is
written. What NeMo's users would miss is an error, what changes nothing is said. Two things are kinder than NeMo's:
`every_n_train_steps` needs no `every_n_epochs=null`, and where several last checkpoints stand, or a damaged one, the
one furthest into training is taken.

Source of the behaviour: NeMo 3.0.0 `nemo.utils.exp_manager`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.exp_keys import ARCHIVE_DEFAULTS, CHECKPOINT_DEFAULTS, NO_MATTER, check_section
from nest_ssl.train.checkpoint.archiving import Archives
from nest_ssl.train.checkpoint.checkpoint_io import AtomicCheckpointIO, Found, check_fits, examine, newest_whole
from nest_ssl.train.checkpoint.checkpoints import Checkpoints
from nest_ssl.train.checkpoint.resume import ExactState, ResumableEpochLoop


@dataclass
class Experiment:
    """What a run keeps besides its recording; without a folder, nothing.

    Args:
        log_dir: folder of this experiment and version.
        callbacks: for the Trainer, before all others.
        resumed: the checkpoint to go on from.
        notes: lines that the user should read.
    """

    log_dir: Path | None = None
    callbacks: list[Callback] = field(default_factory=list)
    resumed: Found | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """Arguments of Lightning's Trainer that go with it."""
        if not self.callbacks:
            return {}
        writes = any(isinstance(callback, Checkpoints) for callback in self.callbacks)
        return {"enable_checkpointing": writes, "plugins": [AtomicCheckpointIO()]}  # true without ours: Lightning's own

    def attach(self, trainer: Trainer, model: LightningModule) -> str | None:
        """Make ready to train; the path to give to `Trainer.fit`.

        Raises:
            UserError: the checkpoint is of another model.
        """
        if self.callbacks:
            trainer.fit_loop.epoch_loop = ResumableEpochLoop(trainer)
        if self.resumed is None:
            return None
        check_fits(self.resumed.path, model)
        return str(self.resumed.path)

    def describe(self) -> dict[str, Any]:
        """For `recording.json`: what was resumed from."""
        if self.resumed is None:
            return {}
        found = self.resumed
        return {"resumed_from": {"checkpoint": str(found.path), "batches": found.batches, "steps": found.steps}}


def open_experiment(cfg: DictConfig) -> Experiment:
    """What `cfg.exp_manager` asks for.

    Raises:
        UserError: a key that is unknown or not offered, a wrong value, nothing to resume from though there must be.
    """
    section = OmegaConf.to_container(cfg.exp_manager) if cfg.get("exp_manager") else None
    if not section:
        return Experiment()
    assert isinstance(section, dict)
    if not (section.get("exp_dir") or section.get("explicit_log_dir")):
        return Experiment(notes=["exp_manager is not used: exp_manager.exp_dir names no folder"])
    check_section(section)
    log_dir = _log_dir(section)
    notes = [f"exp_manager.{key} is not used: {why}" for key, why in NO_MATTER.items() if section.get(key)]
    folder = _checkpoint_folder(section, log_dir)
    resumed, said = _find(section, folder)
    callbacks: list[Callback] = [ExactState()]
    if section.get("create_checkpoint_callback", True):
        checkpoints = _checkpoints(section, folder)
        callbacks += [checkpoints, _archives(section, folder, checkpoints)]
    return Experiment(log_dir, callbacks, resumed, notes + said)


# --- where ---


def _log_dir(section: Mapping[str, Any]) -> Path:
    """NeMo's folder: a run that may resume has no version of its own unless told."""
    if section.get("explicit_log_dir"):
        return Path(section["explicit_log_dir"]).absolute()
    parent = Path(section["exp_dir"]).absolute() / str(section.get("name") or "default")
    if section.get("version"):
        return parent / str(section["version"])
    if section.get("resume_if_exists"):
        return parent
    if section.get("use_datetime_version", True):
        return parent / time.strftime("%Y-%m-%d_%H-%M-%S")
    numbers = [
        int(match[1]) for path in parent.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))
    ]
    return parent / f"version_{max(numbers, default=-1) + 1}"


def _checkpoint_folder(section: Mapping[str, Any], log_dir: Path) -> Path:
    given = (section.get("checkpoint_callback_params") or {}).get("dirpath")
    return Path(given).absolute() if given else log_dir / "checkpoints"


# --- resuming ---


def _find(section: Mapping[str, Any], folder: Path) -> tuple[Found | None, list[str]]:
    """The checkpoint to go on from, and what to say about it."""
    given = section.get("resume_from_checkpoint")
    if not section.get("resume_if_exists"):
        found, said = (examine(Path(given).absolute()) if given else None), []
    else:
        found, said = newest_whole(folder)
        if found is None and not section.get("resume_ignore_no_checkpoint"):
            fix = "Set exp_manager.resume_ignore_no_checkpoint=true to begin anew where there is none."
            raise UserError("no checkpoint to resume from", str(folder), fix)
        if found is None and given:
            found = examine(Path(given).absolute())
        if found is None:
            said = [f"no checkpoint in {folder}: training from scratch"]
    if found is not None:
        said.append(f"resuming from {found.path}, {found.batches} batches and {found.steps} steps into training")
        if not found.exact:
            said.append("the checkpoint has no random states and no place in the data: they begin anew")
    return found, said


# --- writing ---


def _checkpoints(section: Mapping[str, Any], folder: Path) -> Checkpoints:
    given = dict(section.get("checkpoint_callback_params") or {})
    name = str(section.get("name") or "default")
    if given.get("every_n_epochs") is None and (given.get("every_n_train_steps") or given.get("train_time_interval")):
        given["every_n_epochs"] = None
    settings = {**CHECKPOINT_DEFAULTS, **given}
    monitor = f"-{{{settings['monitor']}:.4f}}" if settings["monitor"] else ""
    filename = settings["filename"] or f"{name}-{monitor}-{{epoch}}"
    wanted = {key: value for key, value in settings.items() if key in CHECKPOINT_DEFAULTS}
    wanted |= {"dirpath": str(folder), "filename": filename}
    wanted["train_time_interval"] = _interval(settings["train_time_interval"], "train_time_interval")
    limit = _interval(section.get("max_time_per_run"), "max_time_per_run")
    try:
        return Checkpoints(f"{filename}-last", limit.total_seconds() if limit is not None else None, **wanted)
    except (TypeError, ValueError, MisconfigurationException) as error:
        where = f"exp_manager.checkpoint_callback_params: {error}"
        raise UserError("a checkpoint setting is wrong", where, "See Lightning's ModelCheckpoint.") from error


def _archives(section: Mapping[str, Any], folder: Path, checkpoints: Checkpoints) -> Archives:
    settings = {**ARCHIVE_DEFAULTS, **(section.get("checkpoint_callback_params") or {})}
    name = settings["prefix"] or section.get("name") or "default"
    at_end, always, best = (
        bool(settings[key]) for key in ("save_nemo_on_train_end", "always_save_nemo", "save_best_model")
    )
    return Archives(checkpoints, folder / f"{name}{settings['postfix']}", at_end, always, best)


def _interval(value: Any, key: str) -> timedelta | None:
    """A time as NeMo and Lightning write it, `DD:HH:MM:SS`, or in seconds."""
    if value is None:
        return None
    parts = str(value).split(":")
    if len(parts) in (1, 4) and all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        days, hours, minutes, seconds = ([0.0] * 3 + [float(part) for part in parts])[-4:]
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    raise UserError("not a time", f"exp_manager.{key}={value}", "Write DD:HH:MM:SS, or seconds.")
