"""The validation loss of each loader, averaged and named as NeMo does.

One loader gives `val_loss`. Several give one each, named by its manifest (`dev_clean_manifest.json`:
`dev_clean_val_loss`), and `val_loss` is that of the loader that `validation_ds.val_dl_idx` counts out, the first by
default.

Source of the behaviour: NeMo 3.0.0 `ModelPT.on_validation_epoch_end`, `nemo.utils.model_utils.parse_dataset_as_name`
and `EncDecMaskedTokenPredModel.multi_validation_epoch_end`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nest_ssl.base.errors import UserError
from nest_ssl.config.section import plain
from nest_ssl.data.loader import validation_sections


class ValidationLosses:
    """Collects the losses of one validation.

    Args:
        section: NeMo's `validation_ds`; None where there is no validation.

    Raises:
        UserError: manifests with names that leave none for their losses.
    """

    def __init__(self, section: Mapping[str, Any] | None) -> None:
        given = plain(section) if section is not None else {}
        self._prefixes = loss_prefixes(given) if given else [""]
        self._main = given.get("val_dl_idx", 0)
        self._losses: list[list[Tensor]] = [[] for _ in self._prefixes]

    def add(self, loss: Tensor, loader: int) -> None:
        self._losses[loader].append(loss)

    def take(self) -> dict[str, Tensor]:
        """The mean over the batches of each loader, by name (a loader that gave no batch is left out); then forgets."""
        means = {i: torch.stack(losses).mean() for i, losses in enumerate(self._losses) if losses}
        self._losses = [[] for _ in self._prefixes]
        named = {f"{self._prefixes[i]}val_loss": mean for i, mean in means.items()}
        return named | ({"val_loss": means[self._main]} if self._main in means else {})


def loss_prefixes(section: Mapping[str, Any]) -> list[str]:
    """What stands before `val_loss` for each loader of a `validation_ds`; nothing where there is only one.

    Raises:
        UserError: `name` does not fit, or a manifest is called just `manifest` or `dataset`.
    """
    loaders = validation_sections(section)
    if len(loaders) == 1:
        return [""]
    names = section.get("name") or [loader["manifest_filepath"] for loader in loaders]
    if isinstance(names, str) or len(names) != len(loaders):
        where = f"validation_ds.name={names}"
        raise UserError("not a name for each validation set", where, f"Give a list of {len(loaders)} names.")
    prefixes = []
    for name in map(str, names):
        text = Path(name).stem if Path(name).exists() else name
        text = text.replace("-", "_").replace("manifest", "").replace("dataset", "")
        if not text:
            fix = "Rename the file, e.g. dev_manifest.json, or give validation_ds.name a list."
            raise UserError("the losses of a validation set cannot be named", name, fix)
        prefixes.append(text if text.endswith("_") else f"{text}_")
    return prefixes
