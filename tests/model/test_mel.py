"""The mel filters are librosa's, which NeMo calls, to the last bit."""

from __future__ import annotations

import warnings

import librosa.filters
import numpy as np
import pytest

from nest_ssl.model.mel import hertz, mel, mel_filters


@pytest.mark.parametrize("norm", ["slaney", None])
@pytest.mark.parametrize("limits", [(0, 8000.0), (20, 8000.0), (64.5, 7600), (999.9, 1000.1), (1000, 4000), (0, 900)])
@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "features"),
    [(16000, 512, 80), (16000, 512, 128), (16000, 400, 64), (8000, 256, 40), (22050, 2048, 1), (44100.0, 1024, 26)],
)
def test_the_bits_are_librosas(
    sample_rate: float, n_fft: int, features: int, limits: tuple[float, float], norm: str | None
) -> None:
    fmin, fmax = limits
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        expected = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=features, fmin=fmin, fmax=fmax, norm=norm)
        own = mel_filters(sample_rate, n_fft, features, fmin, fmax, norm)
    assert own.dtype == expected.dtype == np.float32 and own.tobytes() == expected.tobytes()
    assert [warning.category for warning in said] in ([], [UserWarning, UserWarning]), "both of an empty band, or none"
    assert own.max() > 0 or said


def test_the_scale_is_one_to_one() -> None:
    frequencies = np.array([0.0, 440.0, 999.0, 1000.0, 8000.0])
    np.testing.assert_allclose(hertz(np.array([mel(each) for each in frequencies])), frequencies, rtol=1e-12)
