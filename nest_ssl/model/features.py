"""Log-mel features: dither, pre-emphasis, STFT, mel filters, logarithm, normalisation of each feature.

Source: NeMo 3.0.0, in `nemo.collections.asr`: `parts.preprocessing.features` and `modules.audio_preprocessing`; what
older releases do otherwise has a name in `generations.py`.
Not here: narrow-band augmentation, frame splicing, exact padding (`registry.py` refuses them).

Shapes: B batch, N samples, T frames, K STFT bins, F mel bands.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nest_ssl.base.errors import UserError

TINY_STD = 1e-5  # added to a standard deviation, so that silence is not divided by zero
WINDOWS = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
}


class AudioToMelSpectrogramPreprocessor(nn.Module):
    """Audio to log-mel features, in float32 whatever the precision of training.

    Args:
        sample_rate: in Hz.
        window_size, window_stride: in seconds; or `n_window_size`, `n_window_stride` in samples with the others null.
        features: mel bands.
        use_torchaudio, torchaudio_option: see `generations.Generation`.
        others: as `FilterbankFeatures` has them.

    Raises:
        UserError: a window given both in seconds and in samples, or not at all; torchaudio's features.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        window_size: float | None = 0.02,
        window_stride: float | None = 0.01,
        n_window_size: int | None = None,
        n_window_stride: int | None = None,
        window: str = "hann",
        normalize: str | None = "per_feature",
        n_fft: int | None = None,
        preemph: float | None = 0.97,
        features: int = 64,
        lowfreq: float = 0,
        highfreq: float | None = None,
        log: bool = True,
        log_zero_guard_type: str = "add",
        log_zero_guard_value: float | str = 2**-24,
        dither: float = 1e-5,
        pad_to: int = 16,
        pad_value: float = 0,
        mag_power: float = 2.0,
        mel_norm: str | None = "slaney",
        use_torchaudio: bool = False,
        stft_padding: str = "constant",
        mask_waveform: bool = True,
        extra_frames: int = 0,
        std_of_one_frame: str = "zero",
        torchaudio_option: str = "ignored",
    ) -> None:
        super().__init__()
        if use_torchaudio and torchaudio_option == "obeyed":
            what = "NeMo before 2.7 computes other features with torchaudio, and the port does not"
            raise UserError(what, "model.preprocessor.use_torchaudio=true", "Set it to false.")
        # Empty, and converted with the model: it tells which precision the features must leave in.
        self.register_buffer("dtype_sentinel_tensor", torch.tensor((), dtype=torch.float32), persistent=False)
        self.featurizer = FilterbankFeatures(
            sample_rate=sample_rate,
            n_window_size=_samples("window_size", window_size, n_window_size, sample_rate),
            n_window_stride=_samples("window_stride", window_stride, n_window_stride, sample_rate),
            window=window,
            normalize=normalize,
            n_fft=n_fft,
            preemph=preemph,
            nfilt=features,
            lowfreq=lowfreq,
            highfreq=highfreq,
            log=log,
            log_zero_guard_type=log_zero_guard_type,
            log_zero_guard_value=log_zero_guard_value,
            dither=dither,
            pad_to=pad_to,
            pad_value=pad_value,
            mag_power=mag_power,
            mel_norm=mel_norm,
            stft_padding=stft_padding,
            mask_waveform=mask_waveform,
            extra_frames=extra_frames,
            std_of_one_frame=std_of_one_frame,
        )

    @torch.no_grad()
    def forward(self, input_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """`input_signal` (B, N) and its lengths (B) in samples to features (B, F, T) and lengths in frames.

        In training, dither is added to a float32 `input_signal` **in place**, as in NeMo.
        """
        features_BFT, frames_B = self.featurizer(input_signal.to(torch.float32), length)
        return features_BFT.to(self.dtype_sentinel_tensor.dtype), frames_B


class FilterbankFeatures(nn.Module):
    """The computation behind `AudioToMelSpectrogramPreprocessor`; `registry.py` has checked its settings.

    Args:
        n_window_size, n_window_stride: window and hop of the STFT, in samples.
        normalize: ``per_feature``, ``all_features`` or None.
        nfilt: mel bands, from `lowfreq` to `highfreq` Hz (half the sample rate when None).
        log_zero_guard_type: ``add`` something before the logarithm, or ``clamp`` to it.
        log_zero_guard_value: a number, ``tiny`` or ``eps``.
        dither: amplitude of the white noise that is added in training.
        pad_to: the number of frames becomes a multiple of it; 0 leaves it alone.
        stft_padding, mask_waveform, extra_frames, std_of_one_frame: see `generations.Generation`.
    """

    def __init__(
        self,
        sample_rate: int,
        n_window_size: int,
        n_window_stride: int,
        window: str,
        normalize: str | None,
        n_fft: int | None,
        preemph: float | None,
        nfilt: int,
        lowfreq: float,
        highfreq: float | None,
        log: bool,
        log_zero_guard_type: str,
        log_zero_guard_value: float | str,
        dither: float,
        pad_to: int,
        pad_value: float,
        mag_power: float,
        mel_norm: str | None,
        stft_padding: str = "constant",
        mask_waveform: bool = True,
        extra_frames: int = 0,
        std_of_one_frame: str = "zero",
    ) -> None:
        super().__init__()
        self.win_length, self.hop_length = n_window_size, n_window_stride
        self.n_fft = n_fft or 2 ** math.ceil(math.log2(n_window_size))
        self.normalize, self.dither, self.preemph = normalize, dither, preemph
        self.mag_power, self.log = mag_power, log
        self.log_zero_guard_type, self.log_zero_guard_value = log_zero_guard_type, log_zero_guard_value
        self.pad_to, self.pad_value = pad_to, pad_value
        self.stft_padding, self.mask_waveform, self.extra_frames = stft_padding, mask_waveform, extra_frames
        self.std_of_one_frame = std_of_one_frame
        filters_FK = mel_filters(sample_rate, self.n_fft, nfilt, lowfreq, highfreq or sample_rate / 2, mel_norm)
        self.register_buffer("window", WINDOWS[window](n_window_size, periodic=False))
        self.register_buffer("fb", torch.from_numpy(filters_FK).unsqueeze(0))

    @torch.no_grad()
    def forward(self, x: Tensor, seq_len: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (B, N) float32 and `seq_len` (B) in samples to features (B, F, T) and lengths (B) in frames."""
        frames_B = self.frames(seq_len)
        if self.training and self.dither > 0:
            x += self.dither * torch.randn_like(x)
        with torch.autocast(x.device.type, enabled=False):  # half precision would overflow in the power spectrum
            mel_BFT = self.mel(self.emphasise(x, seq_len))
        features_BFT = self.logarithm(mel_BFT) if self.log else mel_BFT
        valid_BT = torch.arange(mel_BFT.size(-1), device=x.device) < frames_B.unsqueeze(1)
        if self.normalize:
            features_BFT = NORMALISATIONS[self.normalize](features_BFT, valid_BT, self.std_of_one_frame)
        features_BFT = features_BFT.masked_fill(~valid_BT.unsqueeze(1), self.pad_value)
        return self.pad(features_BFT), frames_B

    def frames(self, samples_B: Tensor) -> Tensor:
        """The number of frames in so many samples: the STFT's last frame, half beyond the end, does not count."""
        padding = self.n_fft // 2 * 2
        frames_B = torch.floor_divide(samples_B + padding - self.n_fft, self.hop_length) + self.extra_frames
        return frames_B.masked_fill(samples_B == 0, 0).to(torch.long)

    def emphasise(self, x_BN: Tensor, samples_B: Tensor) -> Tensor:
        """Each sample less `preemph` times the one before it; what lies beyond the utterance becomes zero."""
        if self.preemph is None:
            return x_BN
        x_BN = torch.cat((x_BN[:, :1], x_BN[:, 1:] - self.preemph * x_BN[:, :-1]), dim=1)
        if self.mask_waveform:
            valid_BN = torch.arange(x_BN.size(1), device=x_BN.device) < samples_B.unsqueeze(1)
            x_BN = x_BN.masked_fill(~valid_BN, 0.0)
        return x_BN

    def mel(self, x_BN: Tensor) -> Tensor:
        """The mel spectrum (B, F, T). Root and power do not cancel in float32, so both are taken, as in NeMo."""
        spectrum_BKT = torch.stft(
            x_BN,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=self.window.to(torch.float32),
            center=True,
            pad_mode=self.stft_padding,
            return_complex=True,
        )
        power_BKT = torch.view_as_real(spectrum_BKT).pow(2).sum(-1).sqrt()
        if self.mag_power != 1.0:
            power_BKT = power_BKT.pow(self.mag_power)
        return torch.matmul(self.fb.to(power_BKT.dtype), power_BKT)

    def logarithm(self, mel_BFT: Tensor) -> Tensor:
        guard = self.log_zero_guard_value
        if isinstance(guard, str):
            guard = getattr(torch.finfo(mel_BFT.dtype), guard)
        return torch.log(mel_BFT + guard if self.log_zero_guard_type == "add" else mel_BFT.clamp(min=guard))

    def pad(self, x_BFT: Tensor) -> Tensor:
        missing = -x_BFT.size(-1) % self.pad_to if self.pad_to > 0 else 0
        return F.pad(x_BFT, (0, missing), value=self.pad_value) if missing else x_BFT


def normalise_per_feature(x_BFT: Tensor, valid_BT: Tensor, std_of_one_frame: str = "zero") -> Tensor:
    """Every feature to mean 0 and standard deviation 1 (n - 1 in the denominator) over the valid frames."""
    valid_B1T, count_B1 = valid_BT.unsqueeze(1), valid_BT.sum(1, keepdim=True)
    mean_BF = torch.where(valid_B1T, x_BFT, 0.0).sum(2) / count_B1
    centred_BFT = x_BFT - mean_BF.unsqueeze(2)
    variance_BF = (torch.where(valid_B1T, centred_BFT, 0.0) ** 2).sum(2) / (count_B1 - 1.0)
    std_BF = variance_BF.sqrt()  # NaN where there is but one frame
    if std_of_one_frame == "zero":
        std_BF = std_BF.masked_fill(std_BF.isnan(), 0.0)
    return centred_BFT / (std_BF + TINY_STD).unsqueeze(2)


def normalise_all_features(x_BFT: Tensor, valid_BT: Tensor, std_of_one_frame: str = "zero") -> Tensor:
    """Every utterance to mean 0 and standard deviation 1, over its valid frames and all features (never but one)."""
    utterances = [x_FT[:, :frames] for x_FT, frames in zip(x_BFT, valid_BT.sum(1).tolist(), strict=True)]
    mean_B11 = torch.stack([x.mean() for x in utterances]).view(-1, 1, 1)
    std_B11 = torch.stack([x.std() for x in utterances]).view(-1, 1, 1) + TINY_STD
    return (x_BFT - mean_B11) / std_B11


NORMALISATIONS = {"per_feature": normalise_per_feature, "all_features": normalise_all_features}


def mel_filters(
    sample_rate: int, n_fft: int, bands: int, low: float, high: float, norm: str | None = "slaney"
) -> np.ndarray:
    """Triangular filters (F, K) float32, evenly spaced in mel from `low` to `high` Hz, of equal area with ``slaney``.

    Source: Slaney's Auditory Toolbox, in the arithmetic of `librosa.filters.mel` (the same bits; NeMo calls that).
    """
    edges = _mel_to_hz(np.linspace(_hz_to_mel(low), _hz_to_mel(high), bands + 2))
    slopes = np.subtract.outer(edges, np.fft.rfftfreq(n_fft, d=1.0 / sample_rate))
    widths = np.diff(edges)[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if norm == "slaney":
        filters = (filters * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
    return filters


# Slaney's mel scale: linear up to 1 kHz, which is 15 mel, and from there 27 mel for each factor of 6.4.
_HZ_PER_MEL, _BREAK_HZ, _LOG_STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL


def _hz_to_mel(hz: float) -> float:
    return hz / _HZ_PER_MEL if hz < _BREAK_HZ else _BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _BREAK_MEL, _HZ_PER_MEL * mel, _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL)))


def _samples(key: str, seconds: float | None, samples: int | None, sample_rate: int) -> int:
    if bool(seconds) == bool(samples):
        where = f"model.preprocessor.{key}"
        raise UserError(f"{key} needs one value", where, f"Give {key} or n_{key}, and null for the other.")
    return int(seconds * sample_rate) if seconds else int(samples or 0)
