"""NeMo's many-GPU settings, adapted to the machine at hand."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf


def adapt_to_machine(cfg: DictConfig, cuda_devices: int) -> list[str]:
    """Turn NeMo's many-GPU trainer settings into what this machine can run; returns a line for each change.

    Lightning rejects ``devices=-1``, ``ddp`` and synchronised batch norm without a GPU; NeMo's YAML has all three.
    """
    trainer, changes = cfg.trainer, []
    on_cpu = trainer.get("accelerator", "auto") == "cpu" or (
        trainer.get("accelerator") in ("auto", None) and not cuda_devices
    )
    wanted = {}
    if on_cpu and trainer.get("devices") in (-1, "-1", "auto", None):
        wanted["devices"] = 1
    if (
        on_cpu
        and str(trainer.get("strategy", "auto")).startswith("ddp")
        and trainer.get("devices") in (1, -1, "-1", None)
    ):
        wanted["strategy"] = "auto"
    if on_cpu and trainer.get("sync_batchnorm"):
        wanted["sync_batchnorm"] = False
    for key, value in wanted.items():
        changes.append(f"trainer.{key}={trainer.get(key)} needs GPUs and none is used: {value} instead")
        OmegaConf.update(cfg, f"trainer.{key}", value, force_add=True)
    return changes
