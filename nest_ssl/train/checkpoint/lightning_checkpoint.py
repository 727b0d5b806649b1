"""Lightning checkpoints (`.ckpt`) as NeMo writes and reads them, without running what is in them.

Sources: Lightning 2.4 `lightning.pytorch.trainer.connectors.checkpoint_connector`; NeMo 3.0.0 `ModelPT.hparams` and
`ModelPT.load_from_checkpoint` in `nemo.core.classes.modelPT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.base.safe_load import ANOTHER_FILE
from nest_ssl.train.checkpoint.nemo_archive import nemo_config
from nest_ssl.train.checkpoint.weights import check_state_dict, load_weights, plain_settings


def load_checkpoint(path: Path | str) -> tuple[dict[str, Any] | None, dict[str, torch.Tensor]]:
    """The configuration (NeMo's `model` section, if the checkpoint has it) and the weights, on the CPU.

    Raises:
        UserError: no such file, no Lightning checkpoint, a damaged one, or one that would run code.
    """
    value = load_weights(Path(path))
    if not isinstance(value, Mapping) or "state_dict" not in value:
        raise UserError("not a Lightning checkpoint", f"{path} has no state_dict", ANOTHER_FILE)
    settings, where = value.get("hyper_parameters"), f"{path}, hyper_parameters"
    config = None if settings is None else plain_settings(settings, where).get("cfg")
    if config is not None and not isinstance(config, dict):
        raise UserError("no settings", f"{where}.cfg", ANOTHER_FILE)
    return config, check_state_dict(value["state_dict"], f"{path}, state_dict")


def hyper_parameters(settings: Mapping[str, Any], generation: str) -> dict[str, Any]:
    """What NeMo's `load_from_checkpoint` needs in a checkpoint, as NeMo has it: its model takes a DictConfig only."""
    config = OmegaConf.create({"cfg": nemo_config(settings, generation)})
    return {"hparams_name": "kwargs", "hyper_parameters": config, "hparams_type": DictConfig}
