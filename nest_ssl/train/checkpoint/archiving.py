"""When a `.nemo` archive of the model is written: when training ends, and if asked for with every checkpoint.

Source of the behaviour: NeMo 3.0.0 `nemo.utils.callbacks.nemo_model_checkpoint.NeMoModelCheckpoint`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.nemo_archive import nemo_config, save_nemo, write_nemo


@dataclass(eq=False)
class Archives(Callback):
    """Keeps one archive beside the checkpoints.

    Args:
        checkpoints: knows which checkpoint is the best.
        path: where the archive goes.
        at_end: write it when training ends (NeMo: `save_nemo_on_train_end`).
        always: write it with every checkpoint too (NeMo: `always_save_nemo`).
        best: the best checkpoint's weights, not the last ones (NeMo: `save_best_model`).
    """

    checkpoints: ModelCheckpoint
    path: Path
    at_end: bool
    always: bool
    best: bool
    _archived: str = field(default="", init=False)  # the best checkpoint in the archive

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.always:
            return
        if not self.best:
            save_nemo(pl_module, self.path)
        elif self.checkpoints.best_model_path != self._archived:
            self._save_best(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.at_end:
            return
        if self.best and self.checkpoints.best_model_path:
            self._save_best(pl_module)
        else:
            save_nemo(pl_module, self.path)

    @rank_zero_only
    def _save_best(self, model: Any) -> None:
        """From its file, for the model has been trained further. At a new best's own saving, the file is not there yet:
        then the model is what it will hold."""
        best = Path(self.checkpoints.best_model_path)
        if best.is_file():
            write_nemo(nemo_config(model.settings, model.generation), load_checkpoint(best)[1], self.path)
        else:
            save_nemo(model, self.path)
        self._archived = str(best)
