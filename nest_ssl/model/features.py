"""Log-mel features: dither, pre-emphasis, STFT, mel filters, logarithm, normalisation of each feature.

Source: NeMo 3.0.0, in `nemo.collections.asr`: `parts.preprocessing.features` and `modules.audio_preprocessing`; what
older releases do otherwise has a name in `releases.py`.
Not here: frame splicing (`config/parts.py` refuses it; the model of NeMo stops at it too).

Shapes: B batch, N samples, T frames, K STFT bins, F mel bands.
"""

# ruff: noqa: F722  (shapes are no names)

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Preprocessor
from nest_ssl.kernels.available import may_compute
from nest_ssl.model.mel import mel_filters
from nest_ssl.releases import GENERATIONS, NEWEST, Generation

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

OneFrame = Literal["nan", "zero"]  # see `releases.Generation.std_of_one_frame`
TINY_STD = 1e-5  # added to a standard deviation, so that silence is not divided by zero
WINDOWS = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
}


class AudioToMelSpectrogramPreprocessor(nn.Module):
    """Audio to log-mel features, in float32 whatever the precision of training.

    Raises:
        UserError: torchaudio's features.
    """

    def __init__(self, settings: Preprocessor, differences: Generation = GENERATIONS[NEWEST]) -> None:
        super().__init__()
        if settings.use_torchaudio and differences.torchaudio_option == "obeyed":
            what = "NeMo before 2.7 computes other features with torchaudio, and the port does not"
            raise UserError(what, "model.preprocessor.use_torchaudio=true", "Set it to false.")
        # Empty, and converted with the model: its type is that in which the features must leave.
        self.register_buffer("dtype_sentinel_tensor", torch.tensor((), dtype=torch.float32), persistent=False)
        self.featurizer = FilterbankFeatures(settings, differences)

    @torch.no_grad()
    def forward(
        self, input_signal: Float[Tensor, "B N"], length: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B F T"], Int[Tensor, " B"]]:
        """`input_signal` (B, N) and its lengths (B) in samples to features (B, F, T) and lengths in frames.

        In training, dither is added to a float32 `input_signal` **in place**, as in NeMo.
        """
        features_BFT, frames_B = self.featurizer(input_signal.to(torch.float32), length)
        return features_BFT.to(self.dtype_sentinel_tensor.dtype), frames_B


class FilterbankFeatures(nn.Module):
    """The computation behind `AudioToMelSpectrogramPreprocessor`."""

    window: Tensor
    fb: Tensor

    def __init__(self, settings: Preprocessor, differences: Generation = GENERATIONS[NEWEST]) -> None:
        super().__init__()
        self.win_length, self.hop_length = settings.window_samples, settings.hop_samples
        self.n_fft = settings.n_fft or 2 ** math.ceil(math.log2(self.win_length))
        self.normalize, self.dither, self.preemph = settings.normalize, settings.dither, settings.preemph
        self.mag_power, self.log = settings.mag_power, settings.log
        self.log_zero_guard_type = settings.log_zero_guard_type
        self.log_zero_guard_value = settings.log_zero_guard_value
        self.exact_padding = (self.n_fft - self.hop_length) // 2 if settings.exact_pad else None
        self.narrow_band_prob, self._rng = (
            settings.nb_augmentation_prob,
            random.Random(),
        )  # NeMo's name; not seeded here
        self.narrow_band = self.n_fft  # bins that are left; all unless the limit is within the spectrum
        if settings.nb_max_freq < settings.sample_rate / 2:
            self.narrow_band = int((settings.nb_max_freq / settings.sample_rate) * self.n_fft)
        self.pad_to, self.pad_value = settings.pad_to, settings.pad_value
        self.stft_padding, self.mask_waveform = differences.stft_padding, differences.mask_waveform
        self.extra_frames, self.std_of_one_frame = differences.extra_frames, differences.std_of_one_frame
        filters_FK = mel_filters(
            sample_rate=settings.sample_rate,
            n_fft=self.n_fft,
            features=settings.features,
            fmin=settings.lowfreq,
            fmax=settings.highfreq or settings.sample_rate / 2,
            norm=settings.mel_norm,
        )
        self.register_buffer("window", WINDOWS[settings.window](self.win_length, periodic=False))
        self.register_buffer("fb", torch.from_numpy(filters_FK).unsqueeze(0))

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "B N"], seq_len: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B F T"], Int[Tensor, " B"]]:
        """`x` (B, N) float32 and `seq_len` (B) in samples to features (B, F, T) and lengths (B) in frames."""
        frames_B = self.frames(seq_len)
        if self.exact_padding is not None:
            mode = self.stft_padding  # reflect: of a third axis alone
            x = F.pad(x.unsqueeze(1), (self.exact_padding, self.exact_padding), mode).squeeze(1)
        if self.training and self.dither > 0:
            x += self.dither * torch.randn_like(x)
        with torch.autocast(x.device.type, enabled=False):  # half precision would overflow in the power spectrum
            mel_BFT = self.mel(self.emphasise(x, seq_len))
        features_BFT = self.logarithm(mel_BFT) if self.log else mel_BFT
        valid_BT = torch.arange(mel_BFT.size(-1), device=x.device) < frames_B.unsqueeze(1)
        if self.normalize in NORMALISATIONS:
            features_BFT = NORMALISATIONS[self.normalize](features_BFT, valid_BT, self.std_of_one_frame)
        features_BFT = features_BFT.masked_fill(~valid_BT.unsqueeze(1), self.pad_value)
        missing = -features_BFT.size(-1) % self.pad_to if self.pad_to > 0 else 0
        return F.pad(features_BFT, (0, missing), value=self.pad_value) if missing else features_BFT, frames_B

    def frames(self, samples_B: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The number of frames in so many samples: the STFT's last frame, half beyond the end, does not count."""
        padding = 2 * (self.n_fft // 2 if self.exact_padding is None else self.exact_padding)
        frames_B = torch.floor_divide(samples_B + padding - self.n_fft, self.hop_length) + self.extra_frames
        return frames_B.masked_fill(samples_B == 0, 0).to(torch.long)

    def emphasise(self, x_BN: Float[Tensor, "B N"], samples_B: Int[Tensor, " B"]) -> Float[Tensor, "B N"]:
        """Each sample less `preemph` times the one before it; what lies beyond the utterance becomes zero."""
        if self.preemph is None:
            return x_BN
        x_BN = torch.cat((x_BN[:, :1], x_BN[:, 1:] - self.preemph * x_BN[:, :-1]), dim=1)
        if self.mask_waveform:
            valid_BN = torch.arange(x_BN.size(1), device=x_BN.device) < samples_B.unsqueeze(1)
            x_BN = x_BN.masked_fill(~valid_BN, 0.0)
        return x_BN

    def mel(self, x_BN: Float[Tensor, "B N"]) -> Float[Tensor, "B F T"]:
        """The mel spectrum (B, F, T). Root and power do not cancel in float32, so both are taken, as in NeMo."""
        spectrum_BKT = torch.stft(
            x_BN,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=self.window.to(torch.float32),
            center=self.exact_padding is None,
            pad_mode=self.stft_padding,
            return_complex=True,
        )
        squares_BKT2 = torch.view_as_real(spectrum_BKT).pow(2)
        # A CPU takes four times as long for the other one. Both lie in memory alike, for a product reads them.
        by_parts = may_compute(squares_BKT2)
        power_BKT = (squares_BKT2[..., 0] + squares_BKT2[..., 1]).contiguous() if by_parts else squares_BKT2.sum(-1)
        power_BKT = power_BKT.sqrt()
        if self.mag_power != 1.0:
            power_BKT = power_BKT.pow(self.mag_power)
        if self.training and self.narrow_band_prob > 0 and self.narrow_band < self.n_fft:
            for utterance_KT in power_BKT:
                if self._rng.random() < self.narrow_band_prob:
                    utterance_KT[self.narrow_band :] = 0.0
        return torch.matmul(self.fb.to(power_BKT.dtype), power_BKT)

    def logarithm(self, mel_BFT: Float[Tensor, "B F T"]) -> Float[Tensor, "B F T"]:
        guard = self.log_zero_guard_value
        if isinstance(guard, str):
            guard = getattr(torch.finfo(mel_BFT.dtype), guard)
        return torch.log(mel_BFT + guard if self.log_zero_guard_type == "add" else mel_BFT.clamp(min=guard))


def normalise_per_feature(
    x_BFT: Float[Tensor, "B F T"], valid_BT: Bool[Tensor, "B T"], std_of_one_frame: OneFrame = "zero"
) -> Float[Tensor, "B F T"]:
    """Every feature to mean 0 and standard deviation 1 (n - 1 in the denominator) over the valid frames."""
    valid_B1T, count_B1 = valid_BT.unsqueeze(1), valid_BT.sum(1, keepdim=True)
    mean_BF = torch.where(valid_B1T, x_BFT, 0.0).sum(2) / count_B1
    centred_BFT = x_BFT - mean_BF.unsqueeze(2)
    variance_BF = (torch.where(valid_B1T, centred_BFT, 0.0) ** 2).sum(2) / (count_B1 - 1.0)
    std_BF = variance_BF.sqrt()  # NaN where there is but one frame
    if std_of_one_frame == "zero":
        std_BF = std_BF.masked_fill(std_BF.isnan(), 0.0)
    return centred_BFT / (std_BF + TINY_STD).unsqueeze(2)


def normalise_all_features(
    x_BFT: Float[Tensor, "B F T"], valid_BT: Bool[Tensor, "B T"], std_of_one_frame: OneFrame = "zero"
) -> Float[Tensor, "B F T"]:
    """Every utterance to mean 0 and standard deviation 1, over its valid frames and all features (never but one)."""
    utterances = [x_FT[:, :frames] for x_FT, frames in zip(x_BFT, valid_BT.sum(1).tolist(), strict=True)]
    mean_B11 = torch.stack([x.mean() for x in utterances]).view(-1, 1, 1)
    std_B11 = torch.stack([x.std() for x in utterances]).view(-1, 1, 1) + TINY_STD
    return (x_BFT - mean_B11) / std_B11


NORMALISATIONS: dict[str, Callable[[Tensor, Tensor, OneFrame], Tensor]] = {
    "per_feature": normalise_per_feature,
    "all_features": normalise_all_features,
}
