from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.config.parts import Preprocessor
from nest_ssl.config.section import read
from nest_ssl.model.features import AudioToMelSpectrogramPreprocessor
from nest_ssl.releases import GENERATIONS, Generation

NEWEST = GENERATIONS["3.0"]


def preprocessor(differences: Generation = NEWEST, **options: Any) -> AudioToMelSpectrogramPreprocessor:
    settings = read(Preprocessor, {"window_size": 0.025, "features": 80, "n_fft": 512, **options})
    return AudioToMelSpectrogramPreprocessor(settings, differences)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_three_seconds_have_300_frames_padded_to_304() -> None:
    features, lengths = preprocessor().eval()(noise(2, 48000), torch.tensor([48000, 16000]))
    assert features.shape == (2, 80, 304)
    assert lengths.tolist() == [300, 100]
    assert features.dtype == torch.float32


def test_no_padding_if_not_asked_for() -> None:
    features, _ = preprocessor(pad_to=0).eval()(noise(1, 48000), torch.tensor([48000]))
    assert features.size(2) == 301


def test_features_are_normalised_within_the_utterance_and_padded_beyond() -> None:
    features, lengths = preprocessor(pad_value=-7.0).eval()(noise(2, 48000), torch.tensor([48000, 16000]))
    for feature_FT, length in zip(features, lengths, strict=True):
        inside = feature_FT[:, :length]
        torch.testing.assert_close(inside.mean(1), torch.zeros(80), atol=1e-5, rtol=0)
        torch.testing.assert_close(inside.std(1), torch.ones(80), atol=1e-3, rtol=0)
        assert (feature_FT[:, length:] == -7.0).all()


def test_what_lies_beyond_an_utterance_does_not_reach_its_features() -> None:
    audio = noise(1, 48000)
    louder = audio.clone()
    louder[:, 20000:] *= 100
    module, length = preprocessor().eval(), torch.tensor([20000])
    torch.testing.assert_close(module(audio, length)[0], module(louder, length)[0], atol=0, rtol=0)


def test_dither_is_added_in_place_and_only_in_training() -> None:
    audio, length, module = noise(1, 16000), torch.tensor([16000]), preprocessor(dither=0.1)
    before = audio.clone()
    module.eval()(audio, length)
    assert torch.equal(audio, before)
    torch.manual_seed(3)
    module.train()(audio, length)
    torch.manual_seed(3)
    assert torch.equal(audio, before + 0.1 * torch.randn_like(before))


def test_silence_is_finite() -> None:
    audio, length = torch.zeros(1, 16000), torch.tensor([16000])
    plain, _ = preprocessor(normalize=None).eval()(audio, length)
    assert plain[0, 0, 50].item() == pytest.approx(math.log(2**-24))
    normalised, _ = preprocessor().eval()(audio, length)
    assert normalised.abs().max() < 1, "the mean's rounding, divided by 1e-5"


def test_a_single_frame_is_not_divided_by_zero() -> None:
    features, lengths = preprocessor().eval()(noise(1, 300), torch.tensor([300]))
    assert lengths.tolist() == [1]
    assert torch.isfinite(features).all()


def test_half_precision_goes_in_and_out() -> None:
    features, _ = preprocessor().eval().half()(noise(1, 16000).half(), torch.tensor([16000]))
    assert features.dtype == torch.float16


@pytest.mark.parametrize("sizes", [{"n_window_size": 400}, {"window_size": None}])
def test_a_window_has_one_size(sizes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="window_size"):
        preprocessor(**sizes)


# --- what older releases do otherwise --------------------------------------------------------------------------------


def test_an_extra_frame_is_counted_but_not_for_nothing() -> None:
    length = torch.tensor([48000, 160, 159, 1, 0])
    for extra, frames in ((1, [301, 2, 1, 1, 0]), (0, [300, 1, 0, 0, 0])):
        module = preprocessor(replace(NEWEST, extra_frames=extra)).eval()
        assert module(noise(5, 48000), length)[1].tolist() == frames


def test_only_padding_by_reflection_changes_the_ends_alone() -> None:
    audio, length = noise(1, 16000), torch.tensor([16000])
    rows = (NEWEST, replace(NEWEST, stft_padding="reflect"))
    zeros, mirrored = (preprocessor(row, normalize=None, pad_to=0).eval() for row in rows)
    same = (zeros(audio, length)[0] == mirrored(audio, length)[0]).all(1)[0]
    assert same[2:-2].all() and not same[:2].any()


def test_what_lies_beyond_reaches_the_features_unless_masked() -> None:
    audio, length = noise(1, 48000), torch.tensor([20000])
    louder = audio.clone()
    louder[:, 20000:] *= 100
    module = preprocessor(replace(NEWEST, mask_waveform=False)).eval()
    assert not torch.equal(module(audio, length)[0], module(louder, length)[0])


def test_a_single_frame_is_nan_where_its_deviation_is() -> None:
    one = preprocessor(replace(NEWEST, std_of_one_frame="nan")).eval()(noise(1, 300), torch.tensor([300]))[0]
    assert one[0, :, 0].isnan().all()
    more = preprocessor(replace(NEWEST, std_of_one_frame="nan")).eval()(noise(1, 480), torch.tensor([480]))[0]
    assert torch.isfinite(more).all()


def test_torchaudios_features_are_refused_where_nemo_would_compute_them() -> None:
    for ignores_it in ("2.7", "3.0"):
        preprocessor(GENERATIONS[ignores_it], use_torchaudio=True)
    for obeys_it in ("2.4", "2.6"):
        with pytest.raises(UserError, match="torchaudio"):
            preprocessor(GENERATIONS[obeys_it], use_torchaudio=True)
