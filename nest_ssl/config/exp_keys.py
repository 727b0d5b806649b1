"""The keys of NeMo's `exp_manager` section: which are used, which change nothing, which are not offered.

Source: NeMo 3.0.0 `nemo.utils.exp_manager.ExpManagerConfig` and `CallbackParams`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from nest_ssl.base.errors import UserError

# fmt: off
USED = {"explicit_log_dir", "exp_dir", "name", "version", "use_datetime_version", "resume_if_exists",
        "resume_ignore_no_checkpoint", "resume_from_checkpoint", "create_tensorboard_logger", "summary_writer_kwargs",
        "create_wandb_logger", "wandb_logger_kwargs", "create_checkpoint_callback", "checkpoint_callback_params",
        "max_time_per_run"}
# NeMo's defaults, but for save_on_train_epoch_end (false there): null saves behind the validation where there is one,
# else at the end of the epoch, where NeMo would save nothing.
CHECKPOINT_DEFAULTS: dict[str, Any] = {
    "dirpath": None, "filename": None, "monitor": "val_loss", "verbose": True, "save_last": True, "save_top_k": 3,
    "save_weights_only": False, "mode": "min", "auto_insert_metric_name": True, "every_n_epochs": 1,
    "every_n_train_steps": None, "train_time_interval": None, "save_on_train_epoch_end": None}
# Accepted and left aside, also in NeMo's own files, where they stand with these or other values.
SILENT = {"step_timing_kwargs", "seconds_to_sleep", "log_step_timing", "log_delta_step_timing",
          "log_tflops_per_sec_per_gpu", "disable_validation_on_resume", "create_preemption_callback",
          "mlflow_logger_kwargs", "dllogger_logger_kwargs", "clearml_logger_kwargs", "neptune_logger_kwargs",
          "early_stopping_callback_params", "ipl_epoch_stopper_callback_params", "straggler_detection_params",
          "fault_tolerance"}
NO_MATTER = {"files_to_copy": "copy them yourself", "resume_past_end": "no checkpoint is named -end.ckpt here"}
NOT_OFFERED = {"create_mlflow_logger", "create_dllogger_logger", "create_clearml_logger", "create_neptune_logger",
               "create_early_stopping_callback", "create_ipl_epoch_stopper_callback",
               "create_straggler_detection_callback", "create_fault_tolerance_callback", "ema.enable"}
ARCHIVE_DEFAULTS: dict[str, Any] = {
    "prefix": None, "postfix": ".nemo", "save_nemo_on_train_end": True, "always_save_nemo": False,
    "save_best_model": False}
CHECKPOINT_NOT_OFFERED = {"filepath", "model_parallel_size", "async_save"}
CHECKPOINT_KEYS = {*CHECKPOINT_DEFAULTS, *ARCHIVE_DEFAULTS, *CHECKPOINT_NOT_OFFERED, "save_last_n_optim_states"}
KEYS = {*USED, *SILENT, *NO_MATTER, *(key.partition(".")[0] for key in NOT_OFFERED)}
TABLES = {"exp_manager": KEYS, "exp_manager.checkpoint_callback_params": CHECKPOINT_KEYS}
# fmt: on


def check_section(section: Mapping[str, Any]) -> None:
    """Refuse what is misspelt and what a user would miss.

    Raises:
        UserError: the first such key.
    """
    params = section.get("checkpoint_callback_params") or {}
    _check_known(section, KEYS, "exp_manager")
    _check_known(params, CHECKPOINT_KEYS, "exp_manager.checkpoint_callback_params")
    for key in sorted(NOT_OFFERED):
        name, _, below = key.partition(".")
        value = section.get(name)
        if value and (not below or value.get(below)):
            raise _not_offered(f"exp_manager.{key}")
    for key in sorted(CHECKPOINT_NOT_OFFERED):
        if params.get(key):
            raise _not_offered(f"exp_manager.checkpoint_callback_params.{key}")


def _check_known(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
            raise UserError("unknown key", f"{where}.{key}", f"Did you mean {where}.{near[0]}?")


def _not_offered(key: str) -> UserError:
    return UserError("a setting that is not offered", key, "Leave it out, or set it to false.")
