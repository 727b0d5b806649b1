"""NeMo's `exp_manager` section: where a training run keeps its checkpoints and logs, and where it goes on.

    exp_dir/name/version/checkpoints/{name}--{val_loss:.4f}-{epoch}.ckpt         the best
                                     {name}--{val_loss:.4f}-{epoch}-last.ckpt    the last
                                     {name}.nemo                                 the model, when training has ended

It takes effect where it names a folder (`exp_dir` or `explicit_log_dir`); otherwise nothing but the recording is
written. While a training runs, a lock file keeps every other one out of its folder. Two things are kinder than NeMo's:
`every_n_train_steps` needs no `every_n_epochs=null`, and where several last checkpoints stand, or a damaged one, the
one furthest into training is taken.

Source of the behaviour: NeMo 3.0.0 `nemo.utils.exp_manager`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import lock
from nest_ssl.config.section import plain, read
from nest_ssl.config.trainer import CheckpointParams, ExpManager
from nest_ssl.run.preflight import Length
from nest_ssl.run.ranks import Rank
from nest_ssl.train.checkpoint.archiving import Archives
from nest_ssl.train.checkpoint.checkpoint_io import AtomicCheckpointIO, Found, check_fits, examine, newest_whole
from nest_ssl.train.checkpoint.checkpoints import Checkpoints
from nest_ssl.train.checkpoint.resume import EXACT, ExactState, differing_settings
from nest_ssl.train.lightning_internals import ResumableEpochLoop

LOCK = ".training.lock"
LIGHTNINGS = ("filename", "dirpath", "monitor", "verbose", "save_last", "save_top_k", "save_weights_only", "mode",
              "auto_insert_metric_name", "every_n_epochs", "every_n_train_steps",
              "save_on_train_epoch_end")  # fmt: skip


@dataclass
class Experiment:
    """What a run keeps besides its recording; without a folder, nothing.

    Args:
        log_dir: folder of this experiment and version.
        callbacks: for the Trainer, before all others.
        resumed: the checkpoint to go on from.
        done: whether nothing is left to train.
        notes: lines that the user should read.
    """

    log_dir: Path | None = None
    callbacks: list[Callback] = field(default_factory=list)
    resumed: Found | None = None
    done: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """Arguments of Lightning's Trainer that go with it."""
        if not self.callbacks:
            return {}
        writes = any(isinstance(callback, Checkpoints) for callback in self.callbacks)
        return {"enable_checkpointing": writes, "plugins": [AtomicCheckpointIO()]}  # true without it: Lightning's own

    def attach(self, trainer: Trainer, model: LightningModule) -> str | None:
        """Make ready to train; the path to give to `Trainer.fit`.

        Raises:
            UserError: the checkpoint is of another model.
        """
        if self.callbacks:
            trainer.fit_loop.epoch_loop = ResumableEpochLoop(trainer)
        if self.resumed is None:
            return None
        check_fits(self.resumed, model)
        self.resumed = replace(self.resumed, content={})  # or a file that is rotated away would keep its place
        return str(self.resumed.path)

    def close(self, trainer: Trainer) -> bool:
        """Write the archive that an earlier run could not at its very end; whether this one trained at all."""
        if self.resumed is None or trainer.fit_loop.total_batch_idx + 1 > self.resumed.batches:
            return True
        for callback in self.callbacks:
            if isinstance(callback, Archives) and not callback.path.exists():
                callback.on_train_end(trainer, trainer.lightning_module)
        return False

    def describe(self) -> dict[str, Any]:
        """For `recording.json`: what was resumed from."""
        if self.resumed is None:
            return {}
        found = self.resumed
        return {"resumed_from": {"checkpoint": str(found.path), "batches": found.batches, "steps": found.steps}}


@contextlib.contextmanager
def open_experiment(cfg: DictConfig, length: Length, rank: Rank | None = None) -> Iterator[Experiment]:
    """What `cfg.exp_manager` asks for; meanwhile no other training writes to its folder.

    Args:
        cfg: the whole configuration; an empty one asks for nothing.
        length: of this run, from the very beginning.
        rank: which of several processes this is; the first keeps other trainings out.

    Raises:
        UserError: a key that is unknown or not offered, a wrong value, nothing to resume from though there must be,
            another training that writes there.
    """
    given = plain(cfg.exp_manager) if cfg.get("exp_manager") else None
    if not given:
        yield Experiment()
        return
    section = read(ExpManager, given, "exp_manager")
    if not (section.exp_dir or section.explicit_log_dir):
        yield Experiment(notes=["exp_manager is not used: exp_manager.exp_dir names no folder"])
        return
    used = ((key, why) for key, why in ExpManager.ACCEPTED.items() if why and given.get(key))
    notes = [f"exp_manager.{key} is not used: {why}" for key, why in used]
    params = section.checkpoint_callback_params or CheckpointParams()
    log_dir = _log_dir(section)
    folder = Path(params.dirpath).expanduser().absolute() if params.dirpath else log_dir / "checkpoints"
    callbacks: list[Callback] = [ExactState()]
    if section.create_checkpoint_callback:
        name = section.name or "default"
        checkpoints = _checkpoints(section, params, name, folder)
        callbacks.append(checkpoints)
        callbacks.append(
            Archives(
                checkpoints,
                folder / f"{params.prefix or name}{params.postfix}",
                at_end=params.save_nemo_on_train_end,
                always=params.always_save_nemo,
                best=params.save_best_model,
            )
        )
    first = rank is None or rank.number == 0
    with contextlib.ExitStack() as stack:
        for place in dict.fromkeys((log_dir, folder) if params.dirpath else (log_dir,)) if first else ():
            with write_errors(str(place)):
                stack.enter_context(lock(place / LOCK, "training"))
        resumed, said = _find(section, folder)
        if resumed is not None:
            said += differing_settings(
                resumed.content, cfg.model, length.steps, rank.world_size if rank else 1, cfg.get("numerics", EXACT)
            )
        done = resumed is not None and (resumed.batches >= length.batches or resumed.steps >= length.steps)
        yield Experiment(log_dir, callbacks, resumed, done, notes + said)


def _log_dir(section: ExpManager) -> Path:
    """NeMo's folder: a run that may resume has no version of its own unless it is given one."""
    if section.explicit_log_dir:
        return Path(section.explicit_log_dir).expanduser().absolute()
    parent = Path(section.exp_dir or "").expanduser().absolute() / (section.name or "default")
    if section.version:
        return parent / str(section.version)
    if section.resume_if_exists:
        return parent
    if section.use_datetime_version:
        return parent / time.strftime("%Y-%m-%d_%H-%M-%S")
    numbers = [
        int(match[1]) for path in parent.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))
    ]
    return parent / f"version_{max(numbers, default=-1) + 1}"


def _find(section: ExpManager, folder: Path) -> tuple[Found | None, list[str]]:
    """The checkpoint to go on from, and what to say about it."""
    given, said = section.resume_from_checkpoint, list[str]()
    if not section.resume_if_exists:
        found = examine(Path(given).expanduser().absolute()) if given else None
    else:
        found, said = newest_whole(folder)
        if found is None and not section.resume_ignore_no_checkpoint:
            fix = "Set exp_manager.resume_ignore_no_checkpoint=true to start from scratch where there is none."
            raise UserError("no checkpoint to resume from", str(folder), fix)
        if found is None and given:
            found = examine(Path(given).expanduser().absolute())
        if found is None:
            said = [f"no checkpoint in {folder}: training from scratch"]
    if found is not None:
        said.append(f"resuming from {found.path}, {found.batches} batches and {found.steps} steps into training")
        if not found.exact:
            said.append("the checkpoint has no random states and no place in the data: they start again")
    return found, said


def _checkpoints(section: ExpManager, params: CheckpointParams, name: str, folder: Path) -> Checkpoints:
    settings = {key: getattr(params, key) for key in LIGHTNINGS}
    given = params.model_fields_set
    if (params.every_n_train_steps or params.train_time_interval) and (
        "every_n_epochs" not in given or params.every_n_epochs is None
    ):
        settings["every_n_epochs"] = None
    monitor = f"-{{{params.monitor}:.4f}}" if params.monitor else ""
    filename = params.filename or f"{name}-{monitor}-{{epoch}}"
    settings |= {"dirpath": str(folder), "filename": filename}
    settings["train_time_interval"] = _interval(
        params.train_time_interval, "checkpoint_callback_params.train_time_interval"
    )
    limit = _interval(section.max_time_per_run, "max_time_per_run")
    where = "exp_manager.checkpoint_callback_params"
    try:
        checkpoints = Checkpoints(f"{filename}-last", limit.total_seconds() if limit is not None else None, **settings)
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError("a checkpoint setting is wrong", f"{where}: {error}", "See ModelCheckpoint.") from error
    checkpoints.check_name(f"{where}.filename")
    return checkpoints


def _interval(value: Any, key: str) -> timedelta | None:
    """A time as NeMo and Lightning write it, `DD:HH:MM:SS`, or in seconds."""
    if value is None:
        return None
    parts = str(value).split(":")
    if len(parts) in (1, 4) and all(re.fullmatch(r"\d+(\.\d+)?", part) for part in parts):
        days, hours, minutes, seconds = ([0.0] * 3 + [float(part) for part in parts])[-4:]
        with contextlib.suppress(OverflowError):
            return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    raise UserError("not a time", f"exp_manager.{key}={value}", "Write DD:HH:MM:SS, or seconds.")
