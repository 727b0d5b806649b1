"""`trainer:`, Lightning's settings, and `exp_manager:`, NeMo's: where a run keeps its checkpoints and logs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from pydantic import model_validator

from nest_ssl.config.section import Number, Positive, Section, Unfit, Whole, silent

Share = Annotated[int, Ge(1)] | Annotated[Number, Gt(0), Le(1)] | None  # so many batches, or a part of them
_OFF = "Leave it out, or set it to false."
Limit = Literal[-1] | Positive | None


class Trainer(Section):
    """Lightning's Trainer (2.4), and a key beside it. Typed is what would end in a traceback, or in no training."""

    # Handed on to Lightning as they are.
    ACCEPTED = silent(
        "barebones benchmark callbacks default_root_dir detect_anomaly deterministic devices enable_model_summary"
        " fast_dev_run inference_mode limit_predict_batches limit_test_batches max_time min_epochs min_steps"
        " overfit_batches plugins profiler reload_dataloaders_every_n_epochs strategy use_distributed_sampler"
    )
    RENAMED: ClassVar = {  # since Lightning 1.x
        "gpus": "devices", "num_processes": "devices", "tpu_cores": "devices", "auto_select_gpus": "devices",
        "distributed_backend": "strategy", "checkpoint_callback": "enable_checkpointing",
        "progress_bar_refresh_rate": "enable_progress_bar", "weights_summary": "enable_model_summary",
        "replace_sampler_ddp": "use_distributed_sampler", "amp_level": "precision", "amp_backend": "precision",
        "terminate_on_nan": "detect_anomaly", "flush_logs_every_n_steps": "log_every_n_steps",
        "reload_dataloaders_every_epoch": "reload_dataloaders_every_n_epochs",
        "resume_from_checkpoint": "exp_manager.resume_from_checkpoint", "weights_save_path": "exp_manager.exp_dir",
    }  # fmt: skip

    accelerator: Literal["auto", "cpu", "gpu", "cuda"] | None = None
    accumulate_grad_batches: Positive = 1
    check_val_every_n_epoch: Positive | None = 1
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    gradient_clip_val: Annotated[Number, Ge(0)] | None = None
    limit_train_batches: Share = None
    limit_val_batches: Whole | Annotated[Number, Ge(0), Le(1)] | None = None
    log_every_n_steps: Positive | None = None  # NeMo stops at 0
    logger: Any = None
    max_epochs: Limit = None
    max_steps: Limit = -1
    num_nodes: Positive = 1
    num_sanity_val_steps: Literal[-1] | Whole | None = None
    precision: (
        Literal[
            16, 32, 64, "16", "32", "64", "bf16", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "32-true", "64-true"
        ]
        | None
    ) = None
    stall_timeout: Annotated[Number, Gt(0)] | None = None  # seconds of a step; not Lightning's: `run.stall`
    sync_batchnorm: bool = False
    val_check_interval: Positive | Annotated[Number, Gt(0), Le(1)] | None = None


class CheckpointParams(Section):
    """When checkpoints are written, and which are kept."""

    ACCEPTED = silent("save_last_n_optim_states")
    REFUSED = dict.fromkeys(("filepath", "model_parallel_size", "async_save"), _OFF)

    dirpath: str | None = None
    filename: str | None = None
    monitor: str | None = "val_loss"
    verbose: bool = True
    save_last: bool | Literal["link"] | None = True
    save_top_k: int = 3
    save_weights_only: bool = False
    mode: Literal["min", "max"] = "min"
    auto_insert_metric_name: bool = True
    every_n_epochs: Whole | None = 1
    every_n_train_steps: Whole | None = None
    train_time_interval: str | Number | None = None  # DD:HH:MM:SS, or seconds
    # NeMo's default is false. Null saves behind the validation where there is one, else at the end of the epoch, where
    # NeMo would save nothing.
    save_on_train_epoch_end: bool | None = None
    # of `.nemo` archives
    prefix: str | None = None
    postfix: str = ".nemo"
    save_nemo_on_train_end: bool = True
    always_save_nemo: bool = False
    save_best_model: bool = False


class ExpManager(Section):
    """Source: NeMo 3.0.0 `nemo.utils.exp_manager.ExpManagerConfig` and `CallbackParams`."""

    # Left aside also in NeMo's own files, where they stand with these or other values.
    # The two of ranks are of NeMo 2: which of several processes write a text log.
    ACCEPTED = silent(
        "step_timing_kwargs seconds_to_sleep log_step_timing log_delta_step_timing log_tflops_per_sec_per_gpu"
        " disable_validation_on_resume create_preemption_callback mlflow_logger_kwargs dllogger_logger_kwargs"
        " clearml_logger_kwargs neptune_logger_kwargs early_stopping_callback_params"
        " ipl_epoch_stopper_callback_params straggler_detection_params fault_tolerance"
        " log_local_rank_0_only log_global_rank_0_only"
    ) | {"files_to_copy": "copy them yourself", "resume_past_end": "no checkpoint is named -end.ckpt here"}
    REFUSED = dict.fromkeys(
        ("create_mlflow_logger", "create_dllogger_logger", "create_clearml_logger", "create_neptune_logger",
         "create_early_stopping_callback", "create_ipl_epoch_stopper_callback",
         "create_straggler_detection_callback", "create_fault_tolerance_callback"),
        _OFF,
    )  # fmt: skip

    explicit_log_dir: str | None = None
    exp_dir: str | None = None
    name: str | None = None
    version: str | int | None = None
    use_datetime_version: bool = True
    resume_if_exists: bool = False
    resume_ignore_no_checkpoint: bool = False
    resume_from_checkpoint: str | None = None
    create_tensorboard_logger: bool = True
    summary_writer_kwargs: dict[str, Any] | None = None
    create_wandb_logger: bool = False
    wandb_logger_kwargs: dict[str, Any] | None = None
    create_checkpoint_callback: bool = True
    checkpoint_callback_params: CheckpointParams | None = None
    max_time_per_run: str | Number | None = None  # DD:HH:MM:SS, or seconds
    ema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _no_average(self) -> ExpManager:
        if (self.ema or {}).get("enable"):
            raise Unfit("not supported: true", "ema.enable", _OFF)
        return self
