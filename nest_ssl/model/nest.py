"""NEST: predict, from noisy and masked speech, the tokens of clean speech. Start reading here.

Source: NEST (arXiv 2408.13106, section 2); NeMo 3.0.0 `nemo.collections.asr.models.ssl_models`,
`EncDecDenoiseMaskedTokenPredModel`. Module and parameter names are NeMo's, and from the same seed so is every bit.

Shapes: B batch, N samples, F features, T frames, S tokens (T / 8), C codes, H codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.model.build import allowed_keys, build, plain
from nest_ssl.releases import NEWEST, generation

__all__ = ["NestModel", "allowed_keys"]


class NestModel(nn.Module):
    """The model, without its training. With Lightning: ``class Trainable(NestModel, LightningModule)``, in this order.

    Args:
        cfg: NeMo's `model:` section, resolved.
        release: the generation of NeMo whose numbers to reproduce, a key of `generations.GENERATIONS`.

    Raises:
        UserError: a key or value that is unknown, missing or not supported.
    """

    def __init__(self, cfg: Mapping[str, Any], release: str = NEWEST) -> None:
        super().__init__()
        config, numbers = plain(cfg), generation(release)
        _check_mask_position(config)
        # The order of these lines is the order of the random draws. NeMo builds an encoder and a decoder twice, and
        # throws the first pair away; so do we, for the draws.
        preprocessor = build("preprocessor", config, numbers)
        build("encoder", config, numbers)
        build("decoder", config, numbers)
        quantizer = build("quantizer", config, numbers)
        mask_processor = build("masking", config, numbers)
        encoder = build("encoder", config, numbers)
        decoder = build("decoder", config, numbers)
        # And the order of these is NeMo's order of names.
        self.preprocessor = preprocessor
        self.encoder = encoder
        self.loss = build("loss", config, numbers)
        self.quantizer = quantizer
        self.mask_processor = mask_processor
        self.decoder = decoder

    def forward(
        self,
        input_signal: Tensor | None = None,
        input_signal_length: Tensor | None = None,
        processed_signal: Tensor | None = None,
        processed_signal_length: Tensor | None = None,
        noise_signal: Tensor | None = None,
        noise_signal_length: Tensor | None = None,
        processed_noise_signal: Tensor | None = None,
        processed_noise_signal_length: Tensor | None = None,
        noisy_input_signal: Tensor | None = None,
        noisy_input_signal_length: Tensor | None = None,
        processed_noisy_input_signal: Tensor | None = None,
        processed_noisy_input_signal_length: Tensor | None = None,
        apply_mask: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean audio `input_signal` and `noisy_input_signal` (B, N), each with its lengths (B), or features of either.

        The noise alone is not used. In training, dither is added to the audio in place.

        Returns:
            log-probabilities (B, S, C, H), their lengths (B), masks (B, F, T) with 1 where masked, tokens (B, S, H).

        Raises:
            ValueError: audio and features both given, or neither.
        """
        clean_BFT, _ = self.features(input_signal, input_signal_length, processed_signal, processed_signal_length)
        noisy_BFT, length_B = self.features(
            noisy_input_signal,
            noisy_input_signal_length,
            processed_noisy_input_signal,
            processed_noisy_input_signal_length,
        )
        _, tokens_BSH = self.quantizer(input_signal=clean_BFT)
        if apply_mask:
            noisy_BFT, masks_BFT = self.mask_processor(input_feats=noisy_BFT, input_lengths=length_B)
        else:
            masks_BFT = torch.zeros_like(noisy_BFT)
        encoded_BDS, encoded_length_B = self.encoder(audio_signal=noisy_BFT, length=length_B)
        log_probs_BSCH = self.decoder(encoder_output=encoded_BDS)
        return log_probs_BSCH, encoded_length_B, masks_BFT, tokens_BSH

    def features(
        self, audio: Tensor | None, audio_length: Tensor | None, ready: Tensor | None, ready_length: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and lengths of the audio, unless they are `ready`."""
        has_audio = audio is not None and audio_length is not None
        is_ready = ready is not None and ready_length is not None
        if has_audio == is_ready:
            raise ValueError("give a signal and its length, or its features and their length")
        return (ready, ready_length) if is_ready else self.preprocessor(input_signal=audio, length=audio_length)


def _check_mask_position(config: Mapping[str, Any]) -> None:
    position = config.get("mask_position", "pre_conv")
    if position != "pre_conv":  # NeMo 3.0.0 itself fails in `post_conv`: it hands features to convolutions transposed
        raise UserError(f"not supported: {position}", "model.mask_position", "Supported: pre_conv.")
