"""Wav2vec-BERT and its like: mask speech, encode it, and sum losses, each with a head of its own.

In NeMo's recipe the first is contrastive: which vector is behind the mask? Its quantizer, where there is one, names the
vectors, and the second predicts the names.

Source: wav2vec-BERT (arXiv 2108.06209); NeMo 3.0.0
`nemo.collections.asr.models.ssl_models.SpeechEncDecSelfSupervisedModel`. Names are NeMo's, and so are the bits.

Drawn by torch's CPU generator while the model is built, in this order (the encoder's draws are in `nest.py`'s table):

    encoder          once
    decoder_losses   each, in the order of `loss_list`: its decoder, then its loss; or the one pair, likewise
                     decoder: each convolution torch's own, in order; then each weight again, init_mode
                     or as in `transducer.py`
                     contrastive loss: see `gumbel.py`, or target_proj, torch's own

Shapes: B batch, N samples, F features, T frames, D model width, S steps.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nest_ssl.config.losses import Contrastive, Ctc, Mlm, Rnnt
from nest_ssl.config.schema import ListedArchitecture
from nest_ssl.config.section import plain, read
from nest_ssl.kernels.dropout import Dropout
from nest_ssl.model.contrastive import ContrastiveLoss
from nest_ssl.model.encoder.encoder import ConformerEncoder, encoder_of
from nest_ssl.model.features import AudioToMelSpectrogramPreprocessor
from nest_ssl.model.heads import Head, head_of
from nest_ssl.model.loss import CTCLossForSSL, MLMLoss
from nest_ssl.model.masking.patches import augmentation_of
from nest_ssl.model.speech import SpeechModel
from nest_ssl.model.transducer import RNNTLossForSSL
from nest_ssl.releases import NEWEST, Generation
from nest_ssl.releases import generation as differences_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

ZERO = 1e-5  # what is nearer to zero counts as masked


class Wav2VecBertModel(SpeechModel):
    """The model, without its training; built as `NestModel` is.

    Attributes:
        feat_pen: what is added to the loss of the batch that was heard last, for the power of its features.
        decoder_losses_active: whether each of `loss_list` is summed.
    """

    decoder_losses: nn.ModuleDict | None
    decoder_ssl: Head
    loss: nn.Module

    def __init__(self, cfg: Mapping[str, Any], generation: str = NEWEST) -> None:
        super().__init__()
        config, differences = plain(cfg), differences_of(generation)
        known = ListedArchitecture.known() & config.keys()
        parts = read(ListedArchitecture, {key: config[key] for key in known}, "model")
        self.preprocessor = AudioToMelSpectrogramPreprocessor(parts.preprocessor, differences)
        self.encoder = encoder_of(parts.encoder, differences)
        self.listed = {name: each for name, each in (parts.loss_list or {}).items() if each.is_active}
        self.decoder_losses_active = dict.fromkeys(self.listed, True)
        self.decoder_losses = None
        if parts.loss_list is not None:
            pairs = {}
            for name, each in self.listed.items():
                decoder = head_of(each.decoder)
                pairs[name] = nn.ModuleDict({"decoder": decoder, "loss": loss_of(each.loss, differences)})
            self.decoder_losses = nn.ModuleDict(pairs)
        else:
            assert parts.decoder is not None and parts.loss is not None
            self.decoder_ssl = head_of(parts.decoder)
            self.loss = loss_of(parts.loss, differences)
        self.spec_augmentation = augmentation_of(parts.spec_augment)
        self.dropout_features, self.dropout_features_q = (
            None if probability is None else Dropout(probability)
            for probability in (parts.dropout_features, parts.dropout_features_q)
        )
        self.feat_pen: Tensor | float = 0.0
        self.pen_factor = parts.feature_penalty
        if isinstance(self.encoder, ConformerEncoder):
            self.encoder.keep(each.layer for each in self.listed.values() if each.layer is not None)

    def forward(
        self,
        input_signal: Float[Tensor, "B N"] | None = None,
        input_signal_length: Int[Tensor, " B"] | None = None,
        processed_signal: Float[Tensor, "B F T"] | None = None,
        processed_signal_length: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B F T"], Float[Tensor, "B F T"], Float[Tensor, "B D S"], Int[Tensor, " B"]]:
        """Audio `input_signal` (B, N) with its lengths (B), or its features. In training, dither is added in place.

        Returns:
            features as they were before the mask (B, F, T), masks (B, F, T) with 1 where masked, encodings (B, D, S)
            and their lengths (B).

        Raises:
            ValueError: audio and features both given, or neither.
        """
        heard_BFT, length_B = self.features(
            input_signal, input_signal_length, processed_signal, processed_signal_length
        )
        if self.pen_factor:
            self.feat_pen = heard_BFT.float().pow(2).mean() * self.pen_factor
        spectrograms_BFT = heard_BFT.detach().clone()
        if self.dropout_features is not None:
            heard_BFT = self.dropout_features(heard_BFT)
        if self.dropout_features_q is not None:
            spectrograms_BFT = self.dropout_features_q(spectrograms_BFT)
        heard_BFT = self.spec_augmentation(input_spec=heard_BFT, length=length_B)
        within_B1T = torch.arange(heard_BFT.size(2), device=length_B.device) < length_B.view(-1, 1, 1)
        masks_BFT = ((heard_BFT.detach().abs() < ZERO) & within_B1T).float()
        encoded_BDS, encoded_length_B = self.encoder(audio_signal=heard_BFT, length=length_B)
        return spectrograms_BFT, masks_BFT, encoded_BDS, encoded_length_B

    def begin_step(self, step: int, training: bool) -> None:
        """Say how many steps were trained: some losses begin late, and the temperature of a quantizer falls."""
        self.decoder_losses_active = {name: step >= each.start_step for name, each in self.listed.items()}
        for module in self.modules():
            if training and isinstance(module, ContrastiveLoss):
                module.begin_step(step)

    def decoder_loss_step(
        self,
        spectrograms: Float[Tensor, "B F T"],
        spec_masks: Float[Tensor, "B F T"],
        encoded: Float[Tensor, "B D S"],
        encoded_len: Int[Tensor, " B"],
        targets: Int[Tensor, "B _"] | None = None,
        target_lengths: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "*1"], dict[str, Tensor]]:
        """What `forward` gives, and transcripts, to the sum of all losses and to each by its name."""
        if self.decoder_losses is None:
            read = {"targets": targets, "target_lengths": target_lengths} if self.decoder_ssl.needs_labels else {}
            outputs = self.decoder_ssl(encoder_output=encoded, **read)
            if self.loss.needs_labels:
                labels = {"targets": targets, "decoder_lengths": encoded_len, "target_lengths": target_lengths}
                return self.loss(spec_masks=spec_masks, decoder_outputs=outputs, **labels), {}
            return self.loss(spectrograms=spectrograms, spec_masks=spec_masks, decoder_outputs=outputs), {}
        total, losses, kept = encoded.new_zeros(1), {}, getattr(self.encoder, "kept", {})
        for name, settings in self.listed.items():
            if not self.decoder_losses_active[name]:
                continue
            pair: Any = self.decoder_losses[name]
            heard = encoded if settings.layer is None else kept[settings.layer]
            if settings.targets_from_loss is not None:  # they stay for the losses behind this one, as in NeMo
                source: Any = self.decoder_losses[settings.targets_from_loss]
                targets, target_lengths = source["loss"].target_ids, source["loss"].target_lengths
                target_lengths = encoded_len if target_lengths is None else target_lengths
            read = {"targets": targets, "target_lengths": target_lengths} if pair["decoder"].needs_labels else {}
            heard = heard.transpose(-2, -1) if settings.transpose_encoded else heard
            outputs = pair["decoder"](encoder_output=heard, **read)
            inputs = {"spec_masks": spec_masks, "decoder_outputs": outputs, "decoder_lengths": encoded_len}
            if pair["loss"].needs_labels:
                losses[name] = pair["loss"](**inputs, targets=targets, target_lengths=target_lengths)
            else:
                losses[name] = pair["loss"](**inputs, spectrograms=spectrograms)
            total = total + losses[name] * settings.loss_alpha
        if isinstance(self.encoder, ConformerEncoder):
            self.encoder.keep(self.encoder.kept)  # and not what is there: the graph of the step hangs on it
        return total, losses


ListedLossModule = ContrastiveLoss | MLMLoss | CTCLossForSSL | RNNTLossForSSL


def loss_of(settings: Contrastive | Mlm | Ctc | Rnnt, differences: Generation) -> ListedLossModule:
    """The loss that the settings name."""
    if isinstance(settings, Contrastive):
        return ContrastiveLoss(settings, differences)
    if isinstance(settings, Rnnt):
        return RNNTLossForSSL(settings)
    return CTCLossForSSL(settings) if isinstance(settings, Ctc) else MLMLoss(settings)
