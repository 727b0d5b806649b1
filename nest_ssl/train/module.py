"""The models as LightningModules: what Lightning needs around those of `model/`, and nothing of a model itself.

Source of the behaviour: NeMo 3.0.0 `EncDecDenoiseMaskedTokenPredModel`, its two parents without noise, and
`nemo.core.classes.modelPT.ModelPT`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from nest_ssl import releases
from nest_ssl.base.errors import UserError
from nest_ssl.config.data import Dataset
from nest_ssl.config.schema import BEST_RQ, NEST, WAV2VEC_BERT, class_of
from nest_ssl.config.section import plain, read
from nest_ssl.data.batch import AudioNoiseBatch, TranscribedBatch
from nest_ssl.data.corpus import Corpora
from nest_ssl.data.loader import build_dataloader, validation_sections
from nest_ssl.data.skipping import SkippedAudio
from nest_ssl.model import ahead
from nest_ssl.model.best_rq import BestRqModel
from nest_ssl.model.counted_tokens import loss_of_counted
from nest_ssl.model.encoder.fused.choice import Methods, is_watched
from nest_ssl.model.encoder.graphs import GraphedEncoder
from nest_ssl.model.loss import MLMLoss
from nest_ssl.model.nest import NestModel
from nest_ssl.model.wav2vec_bert import Wav2VecBertModel
from nest_ssl.train.checkpoint.lightning_checkpoint import hyper_parameters, load_checkpoint
from nest_ssl.train.optim import build_optimizer
from nest_ssl.train.schedules import build_schedule, planned_steps
from nest_ssl.train.validation import ValidationLosses

if TYPE_CHECKING:
    from typing_extensions import Self

    Lightning = LightningModule
else:
    Lightning = object

Heard = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # features to name tokens of and to predict from, their lengths


class Training(Lightning):
    """What of training is the same for every model. A subclass is also the model and a LightningModule, in this order:

        class NestModule(Training, NestModel, LightningModule)

    so that no attribute is in between, and parameter names are NeMo's.

    Args:
        cfg: NeMo's `model` section, resolved.
        generation: the one of NeMo to be exact with, a key of `releases.GENERATIONS`.
        no_masked_token: the loss of a batch in which no token counts, in training and validation: ``nan`` or ``zero``.
        skipped: go on without audio files that cannot be used, and count them here; None: stop at the first.
        corpora: manifests that have been read already.
        seeded_data: whether draws that NeMo seeds from the clock follow from the seed, see `data/sources/seeding.py`.
        rank, world_size: which of how many processes this is; each reads its part of streams and mixtures.
    """

    def __init__(
        self,
        cfg: DictConfig,
        generation: str = releases.NEWEST,
        no_masked_token: str = "nan",
        skipped: SkippedAudio | None = None,
        corpora: Corpora | None = None,
        seeded_data: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        differences = releases.generation(generation)
        data: dict[str, Any] = {"skipped": skipped, "corpora": corpora, "differences": differences}
        data |= {"seeded": seeded_data, "noisy": class_of(cfg.get("target")) == NEST, "rank": rank}
        data["world_size"] = world_size
        train, rate = None if cfg.get("train_ds") is None else read(Dataset, cfg.train_ds, "train_ds"), cfg.sample_rate
        sections = validation_sections(cfg.validation_ds) if cfg.get("validation_ds") is not None else []
        validation = [read(Dataset, section, "validation_ds") for section in sections]
        train_loader = build_dataloader(train, rate, shuffle=True, training=True, **data)  # before the model, as NeMo:
        validation_loaders = [build_dataloader(dataset, rate, **data) for dataset in validation]  # some loaders seed
        super().__init__(cfg, generation)
        for module in self.modules():
            if isinstance(module, MLMLoss):
                module.no_masked_token = no_masked_token
        self.save_hyperparameters({"cfg": plain(cfg)})  # for loggers, as NeMo; builtins, for checkpoints hold them too
        self.settings, self.generation, self.skipped = cfg, generation, skipped
        self._train_loader, self._validation_loaders = train_loader, validation_loaders
        self._validation_losses = ValidationLosses(cfg.get("validation_ds"))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Path | str, **arguments: Any) -> Self:  # type: ignore[override]
        """The model of a Lightning checkpoint, NeMo's or the port's, without its data; no code of the file runs.

        Args:
            checkpoint_path: the file.
            arguments: further ones of the constructor.

        Raises:
            UserError: no such file, a damaged one, or one that does not say which model it is of.
        """
        config, state_dict = load_checkpoint(checkpoint_path)
        if config is None:
            raise UserError("a checkpoint without its settings", str(checkpoint_path), "Build the model, then load it.")
        model = cls(OmegaConf.create({**config, "train_ds": None, "validation_ds": None}), **arguments)
        model.load_state_dict(state_dict)
        return model

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(hyper_parameters(self.settings, self.generation))

    def train_dataloader(self) -> DataLoader[Any] | None:
        return self._train_loader

    def val_dataloader(self) -> Sequence[DataLoader[Any] | None]:
        return self._validation_loaders

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self._loss(batch)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        # Lightning would copy these two to the device, and the host wait for each; of its type, they stay on the CPU.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        numbers = {"learning_rate": rate, "global_step": self.trainer.global_step}
        logs = {name: torch.tensor(number, dtype=dtype) for name, number in numbers.items()}
        self.log_dict({**logs, **{f"train_{name}": part for name, part in self.logged(loss).items()}}, on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._validation_losses.add(self._loss(batch), dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._validation_losses.take(), on_epoch=True)

    def configure_optimizers(self) -> Any:
        section = plain(self.settings.optim)
        optimizer = build_optimizer(self, section, plain(self.settings.get("optim_param_groups")))
        sched = section.get("sched") or {}
        schedule = build_schedule(optimizer, sched, planned_steps(sched, self.trainer, self._train_loader))
        if schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": schedule, "interval": "step", "frequency": 1}]

    def logged(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        """What of a loss is logged in training, by name."""
        return {"loss": loss}

    @abstractmethod
    def _loss(self, batch: Any) -> torch.Tensor:
        """The loss of a batch."""


class NestModule(Training, NestModel, LightningModule):  # type: ignore[misc]
    """Trains on batches of clean and noisy audio to predict the clean audio's tokens where the noisy one is masked.

    Args:
        cuda_graphs: replay the encoder's kernels on a GPU.
        others: as of `Training`.
    """

    def __init__(self, *others: Any, cuda_graphs: bool = False, **named: Any) -> None:
        super().__init__(*others, **named)
        encoder: Any = self.encoder
        self.graphed = GraphedEncoder(encoder) if cuda_graphs else None

    def signals(self, batch: AudioNoiseBatch) -> dict[str, torch.Tensor]:
        """What of a batch `forward` takes, by name."""
        return {
            "input_signal": batch.audio,
            "input_signal_length": batch.audio_len,
            "noise_signal": batch.noise,
            "noise_signal_length": batch.noise_len,
            "noisy_input_signal": batch.noisy_audio,
            "noisy_input_signal_length": batch.noisy_audio_len,
        }

    def heard(self, batch: Any) -> Heard:
        """The features of a batch, as `forward` computes them."""
        clean_BFT, _ = self.features(batch.audio, batch.audio_len, None, None)
        return clean_BFT, *self.features(batch.noisy_audio, batch.noisy_audio_len, None, None)

    def is_open(self) -> bool:
        """Whether `forward` is called: somebody looks, or there is another one, in a subclass or in a class that
        somebody changed in Python."""
        return type(self) not in UNCHANGED or not all(each.are_as_imported() for each in METHODS) or is_watched(self)

    def _loss(self, batch: Any) -> torch.Tensor:
        if not self.is_open():
            heard = self.heard(batch)
            on_device = heard[0].device.type == ahead.DEVICE
            if on_device and ahead.METHODS.are_as_imported(self.quantizer, *self.loss.modules()):
                return ahead.loss_ahead(self, *heard)
            encoded_BDT, _, masks_BDT, tokens_BTH = self.encode(*heard, mask=True)
            return loss_of_counted(self.decoder, self.loss, encoded_BDT, tokens_BTH, masks_BDT)
        log_probs_BTCH, encoded_len_B, masks_BDT, tokens_BTH = self.forward(**self.signals(batch), apply_mask=True)
        loss: torch.Tensor = self.loss(
            masks=masks_BDT, decoder_outputs=log_probs_BTCH, targets=tokens_BTH, decoder_lengths=encoded_len_B
        )
        return loss


class BestRqModule(BestRqModel, NestModule):  # type: ignore[misc]
    """Trains on batches of clean audio to predict its tokens where it is masked."""

    def signals(self, batch: TranscribedBatch) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"input_signal": batch[0], "input_signal_length": batch[1]}

    def heard(self, batch: TranscribedBatch) -> Heard:  # type: ignore[override]
        speech_BFT, length_B = self.features(batch[0], batch[1], None, None)
        return speech_BFT, speech_BFT, length_B


class Wav2VecBertModule(Training, Wav2VecBertModel, LightningModule):  # type: ignore[misc]
    """Trains on batches of clean audio with transcripts, and sums the losses of its list.

    Attributes:
        parts: of the last batch each of them, by name.
    """

    parts: dict[str, torch.Tensor]

    def logged(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.parts

    def _loss(self, batch: TranscribedBatch) -> torch.Tensor:
        audio, audio_len, characters, lengths = batch
        found = self.forward(input_signal=audio, input_signal_length=audio_len)
        self.begin_step(self.trainer.global_step, self.training)
        loss, self.parts = self.decoder_loss_step(*found, characters, lengths)
        return loss + self.feat_pen if self.feat_pen else loss


MODULES: dict[str, type[NestModule | Wav2VecBertModule]] = {
    NEST: NestModule,
    BEST_RQ: BestRqModule,
    WAV2VEC_BERT: Wav2VecBertModule,
}
UNCHANGED: set[type] = {NestModule, BestRqModule}
PARTS_OF_A_STEP = ("forward", "predict", "encode", "signals")
METHODS = [Methods(*UNCHANGED, names=PARTS_OF_A_STEP)]
