"""The trained model that is used elsewhere: of an archive or a checkpoint; and the folder that it goes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import remove_leftovers
from nest_ssl.config.schema import class_of
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.speech import SpeechModel
from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.nemo_archive import load_nemo
from nest_ssl.train.module import MODULES


def load_model(path: str) -> tuple[SpeechModel, dict[str, Any]]:
    """The model of a `.nemo` archive or a Lightning checkpoint, ready to encode, and its settings (NeMo's `model`).

    Raises:
        UserError: no such file, a damaged one, one that does not say which model it is of, or of another model.
    """
    config, weights = weights_of(path)
    model = MODULES[class_of(config.get("target"))](
        OmegaConf.create({**config, "train_ds": None, "validation_ds": None})
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()
        raise UserError("weights that do not fit this model", f"{path}: {what}", "Give another file.") from error
    if not isinstance(model.encoder, ConformerEncoder):
        raise UserError(
            "an encoder without layers", f"{path}: ConvASREncoder", "Give an archive with a ConformerEncoder."
        )
    return model.eval(), config


def weights_of(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings (NeMo's `model` section) and the weights in a `.nemo` archive or a Lightning checkpoint.

    Raises:
        UserError: no such file, a damaged one, or one that does not say which model it is of.
    """
    config, weights = load_nemo(path) if path.endswith(".nemo") else load_checkpoint(path)
    fix = "Give the .nemo archive of the run."
    if config is None:
        raise UserError("a checkpoint without its settings", path, fix)
    for key, kind in (("sample_rate", int), ("preprocessor", dict), ("encoder", dict)):
        if not isinstance(config.get(key), kind):
            raise UserError(f"a model whose settings have no {key}", path, fix)
    return config, weights


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Around what writes an export's files.

    Raises:
        UserError: the folder is not empty; a full disk.
    """
    remove_unfinished(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError("the folder is not empty", str(folder), "Choose another one.")
    with write_errors(str(folder)):
        yield


def remove_unfinished(folder: Path) -> None:
    """Delete from the folder what commands that were killed had half written."""
    for left in folder.glob(".*.partial-*"):
        remove_leftovers(folder / left.name[1:].partition(".partial-")[0])
