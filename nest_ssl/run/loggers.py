"""TensorBoard and Weights & Biases, asked for by the keys of NeMo's `exp_manager` section.

Loggers are opened before anything is seeded, so that a place that cannot be written shows at once, and so that nothing
that they draw (W&B draws a run id) can touch training.

Source of the behaviour: NeMo 3.0.0 `nemo.utils.exp_manager.configure_loggers`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError, from_os_error


def build_loggers(section: Mapping[str, Any] | None, log_dir: Path) -> list[Logger]:
    """The loggers that NeMo's `exp_manager` section asks for, open; none without a section.

    Args:
        section: `create_tensorboard_logger` (NeMo's default: true), `summary_writer_kwargs`, `create_wandb_logger`
            (false) and `wandb_logger_kwargs` are read.
        log_dir: TensorBoard's events lie in it, W&B's files in its `wandb/`.

    Raises:
        UserError: a logger that is not installed, a setting that it does not take, a place that cannot be written, a
            W&B run that cannot be started.
    """
    given = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else dict(section or {})
    assert isinstance(given, dict)
    loggers: list[Logger] = []
    if given and given.get("create_tensorboard_logger", True):
        where, settings = "exp_manager.summary_writer_kwargs", given.get("summary_writer_kwargs") or {}
        if "log_dir" in settings:
            raise UserError("a setting that is made elsewhere", f"{where}.log_dir", "Set exp_manager.explicit_log_dir.")
        with _opening("TensorBoard", where, log_dir, "See TensorBoardLogger."):
            logger = TensorBoardLogger(save_dir=log_dir, name="", version="", **settings)
            _ = logger.experiment  # opens the file of events
            loggers.append(logger)
    if given.get("create_wandb_logger"):
        loggers.append(_wandb(given.get("wandb_logger_kwargs") or {}, log_dir))
    return loggers


@contextlib.contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Meanwhile they are in use; afterwards W&B's run is ended, as a failed one if training was.

    Lightning leaves the run open till the process ends, when its last words would go to the console.
    """
    failed = True
    try:
        yield
        failed = False
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(failed))


@contextlib.contextmanager
def _opening(name: str, where: str, place: Path, fix: str) -> Iterator[None]:
    """What a logger raises while it is made, as the user's error: a setting, or a place that cannot be written."""
    try:
        yield
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"a {name} setting is wrong", f"{where}: {error}".rstrip("."), fix) from error
    except OSError as error:
        raise from_os_error(error, str(place)) from error


def _wandb(settings: dict[str, Any], log_dir: Path) -> Logger:
    if importlib.util.find_spec("wandb") is None:
        fix = "Install it (pip install wandb), or leave create_wandb_logger out."
        raise UserError("Weights & Biases is not installed", "exp_manager.create_wandb_logger", fix)
    import wandb.errors

    where = "exp_manager.wandb_logger_kwargs"
    if not any(settings.get(key) or os.environ.get(f"WANDB_{key.upper()}") for key in ("project", "name")):
        raise UserError("a W&B run needs a project or a name", where, f"Set {where}.project, or WANDB_PROJECT.")
    settings = {"save_dir": str(log_dir), **{key: value for key, value in settings.items() if value is not None}}
    with _opening("W&B", where, settings["save_dir"], "See Lightning's WandbLogger."):
        Path(settings["save_dir"]).mkdir(parents=True, exist_ok=True)
        try:
            logger = WandbLogger(**settings)
            _ = logger.experiment  # starts the run; online, this is where W&B asks for a login
        except wandb.errors.Error as error:
            fix = "A run can also be kept on the disk: WANDB_MODE=offline or wandb_logger_kwargs.offline=true."
            raise UserError("W&B cannot start a run", f"{where}: {error}".rstrip("."), fix) from error
    return logger
