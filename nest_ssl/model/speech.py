"""What all self-supervised models here begin with: audio, or features of it that are ready.

Shapes: B batch, N samples, F features, T frames.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from nest_ssl.model.encoder.convolutional import ConvASREncoder
from nest_ssl.model.encoder.encoder import ConformerEncoder
from nest_ssl.model.features import AudioToMelSpectrogramPreprocessor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class SpeechModel(nn.Module):
    """A model of speech, built as its subclasses say."""

    preprocessor: AudioToMelSpectrogramPreprocessor
    encoder: ConformerEncoder | ConvASREncoder

    def features(
        self,
        audio: Float[Tensor, "B N"] | None,
        audio_length: Int[Tensor, " B"] | None,
        ready: Float[Tensor, "B F T"] | None,
        ready_length: Int[Tensor, " B"] | None,
    ) -> tuple[Float[Tensor, "B F T"], Int[Tensor, " B"]]:
        """Features (B, F, T) and lengths of the audio, unless they are `ready`."""
        has_audio = audio is not None and audio_length is not None
        if has_audio == (ready is not None and ready_length is not None):
            raise ValueError("give a signal and its length, or its features and their length")
        if has_audio:
            ready, ready_length = self.preprocessor(input_signal=audio, length=audio_length)
        assert ready is not None
        assert ready_length is not None
        return ready, ready_length
