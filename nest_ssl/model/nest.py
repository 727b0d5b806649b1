"""NEST: predict, from noisy and masked speech, the tokens of clean speech. Start reading here.

Source: NEST (arXiv 2408.13106, section 2); NeMo 3.0.0 `nemo.collections.asr.models.ssl_models`,
`EncDecDenoiseMaskedTokenPredModel`. Module and parameter names are NeMo's, and from the same seed so is every bit.

Each number that torch's CPU generator draws while the model is built, in this order (torch's own initialisations are
U(-b, b), b = 1 / sqrt(fan in), for weights and then biases):

    part             what is drawn                                                           as
    preprocessor     nothing
    encoder          subsampling: conv 0, 2, 3, 5, 6 (as many as there are), then out        torch's own
                     each layer: feed_forward1.linear1, .linear2,                            torch's own
                       conv.pointwise_conv1, .depthwise_conv, .pointwise_conv2,
                       self_attn.linear_q, _k, _v, _out, _pos (no bias),
                       feed_forward2.linear1, .linear2
                     out_proj, where feat_out asks for one                                   torch's own
    decoder          its one layer: weight and bias                                          torch's own
                     the weight, again                                                       init_mode (Xavier uniform)
    both are dropped: NeMo's parent class builds an encoder and a decoder, and its child builds others in their place
    quantizer        proj.weight                                                             torch's own
                     proj.weight, again                                                      Xavier normal
                     codebooks, in float32, dropped                                          N(0, 1)
                     codebooks, in float64, then scaled to length 1                          N(0, 1)
    mask_processor   mask_embedding, unless mask_value is given                              N(0, 0.1)
    encoder          as above; this one stays
    decoder          as above; this one stays

Norms, position biases (zeros) and the loss draw nothing.

Shapes: B batch, N samples, F features, T frames, S tokens (T / 8), C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nest_ssl.config.schema import Architecture
from nest_ssl.config.section import plain, read
from nest_ssl.model.encoder.encoder import encoder_of
from nest_ssl.model.encoder.fused.choice import is_watched
from nest_ssl.model.encoder.graphs import GraphedEncoder
from nest_ssl.model.features import AudioToMelSpectrogramPreprocessor
from nest_ssl.model.heads import MultiSoftmaxDecoder
from nest_ssl.model.loss import MultiMLMLoss
from nest_ssl.model.masking.random_blocks import RandomBlockMasking
from nest_ssl.model.quantizer import RandomProjectionVectorQuantizer
from nest_ssl.model.speech import SpeechModel
from nest_ssl.releases import NEWEST
from nest_ssl.releases import generation as differences_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class NestModel(SpeechModel):
    """The model, without its training. With Lightning: ``class Trainable(NestModel, LightningModule)``, in this order.

    Args:
        cfg: NeMo's `model:` section, resolved.
        generation: that of the NeMo to be exact with, a key of `releases.GENERATIONS`.

    Raises:
        UserError: a key or value that is unknown, missing or not supported.

    Attributes:
        graphed: what stands for the encoder where no hook looks; None: nothing.
    """

    graphed: GraphedEncoder | None = None

    def __init__(self, cfg: Mapping[str, Any], generation: str = NEWEST) -> None:
        super().__init__()
        config, differences = plain(cfg), differences_of(generation)
        parts = read(Architecture, {key: config[key] for key in Architecture.known() & config.keys()}, "model")
        # The order of these lines is the order of the random draws, those of a pair that is thrown away among them.
        preprocessor = AudioToMelSpectrogramPreprocessor(parts.preprocessor, differences)
        encoder_of(parts.encoder, differences)
        MultiSoftmaxDecoder(parts.decoder)
        quantizer = RandomProjectionVectorQuantizer(parts.quantizer)
        mask_processor = RandomBlockMasking(parts.masking, differences)
        encoder = encoder_of(parts.encoder, differences)
        decoder = MultiSoftmaxDecoder(parts.decoder)
        # The order of these is NeMo's order of names: of parameters in the optimizer, and of entries in a file.
        self.preprocessor = preprocessor
        self.encoder = encoder
        self.loss = MultiMLMLoss(parts.loss)
        self.quantizer = quantizer
        self.mask_processor = mask_processor
        self.decoder = decoder

    def forward(
        self,
        input_signal: Float[Tensor, "B N"] | None = None,
        input_signal_length: Int[Tensor, " B"] | None = None,
        processed_signal: Float[Tensor, "B F _"] | None = None,
        processed_signal_length: Int[Tensor, " B"] | None = None,
        noise_signal: Float[Tensor, "B _"] | None = None,
        noise_signal_length: Int[Tensor, " B"] | None = None,
        processed_noise_signal: Float[Tensor, "B F _"] | None = None,
        processed_noise_signal_length: Int[Tensor, " B"] | None = None,
        noisy_input_signal: Float[Tensor, "B N"] | None = None,
        noisy_input_signal_length: Int[Tensor, " B"] | None = None,
        processed_noisy_input_signal: Float[Tensor, "B F _"] | None = None,
        processed_noisy_input_signal_length: Int[Tensor, " B"] | None = None,
        apply_mask: bool = False,
    ) -> tuple[Float[Tensor, "B S C *H"], Int[Tensor, " B"], Float[Tensor, "B F T"], Int[Tensor, "B _ *H"]]:
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
        return self.predict(clean_BFT, noisy_BFT, length_B, apply_mask)

    def predict(
        self,
        clean_BFT: Float[Tensor, "B F _"],
        heard_BFT: Float[Tensor, "B F T"],
        length_B: Int[Tensor, " B"],
        mask: bool,
    ) -> tuple[Float[Tensor, "B S C *H"], Int[Tensor, " B"], Float[Tensor, "B F T"], Int[Tensor, "B _ *H"]]:
        """The tokens of `clean_BFT`, and how probable they are made by what is heard, masked if asked."""
        encoded_BDS, *others = self.encode(clean_BFT, heard_BFT, length_B, mask)
        log_probs_BSCH = self.decoder(encoder_output=encoded_BDS)
        return log_probs_BSCH, *others

    def encode(
        self,
        clean_BFT: Float[Tensor, "B F _"],
        heard_BFT: Float[Tensor, "B F T"],
        length_B: Int[Tensor, " B"],
        mask: bool,
    ) -> tuple[Float[Tensor, "B D S"], Int[Tensor, " B"], Float[Tensor, "B F T"], Int[Tensor, "B _ *H"]]:
        """What `predict` decodes, and the other three that it returns."""
        _, tokens_BSH = self.quantizer(input_signal=clean_BFT)
        if mask:
            heard_BFT, masks_BFT = self.mask_processor(input_feats=heard_BFT, input_lengths=length_B)
        else:
            masks_BFT = torch.zeros_like(heard_BFT)
        encoder = self.encoder if self.graphed is None or is_watched(self) else self.graphed
        encoded_BDS, encoded_length_B = encoder(audio_signal=heard_BFT, length=length_B)
        return encoded_BDS, encoded_length_B, masks_BFT, tokens_BSH
