"""BEST-RQ: NEST without noise. The tokens to predict are those of the same speech that is masked.

Source: BEST-RQ (arXiv 2202.01855); NeMo 3.0.0 `nemo.collections.asr.models.ssl_models.EncDecMaskedTokenPredModel`,
whose parts and draws are those of its child, NEST.

Shapes: B batch, N samples, F features, T frames, S tokens (T / 8), C codes, H codebooks.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from nest_ssl.model.nest import NestModel

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class BestRqModel(NestModel):
    """The model, without its training; built as `NestModel` is."""

    def forward(  # type: ignore[override]
        self,
        input_signal: Float[Tensor, "B N"] | None = None,
        input_signal_length: Int[Tensor, " B"] | None = None,
        processed_signal: Float[Tensor, "B F T"] | None = None,
        processed_signal_length: Int[Tensor, " B"] | None = None,
        apply_mask: bool = False,
    ) -> tuple[Float[Tensor, "B S C *H"], Int[Tensor, " B"], Float[Tensor, "B F T"], Int[Tensor, "B S *H"]]:
        """Audio `input_signal` (B, N) with its lengths (B), or its features. In training, dither is added in place.

        Returns:
            log-probabilities (B, S, C, H), their lengths (B), masks (B, F, T) with 1 where masked, tokens (B, S, H).

        Raises:
            ValueError: audio and features both given, or neither.
        """
        features = self.features(input_signal, input_signal_length, processed_signal, processed_signal_length)
        speech_BFT, length_B = features
        return self.predict(speech_BFT, speech_BFT, length_B, apply_mask)
