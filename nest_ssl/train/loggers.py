"""TensorBoard, asked for by the keys of NeMo's `exp_manager` section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger


def build_loggers(section: Mapping[str, Any], log_dir: Path) -> list[Logger]:
    """The loggers that the section asks for; their files lie in `log_dir`."""
    if not section.get("create_tensorboard_logger", True):
        return []
    return [TensorBoardLogger(save_dir=log_dir, name="", version="", **(section.get("summary_writer_kwargs") or {}))]
