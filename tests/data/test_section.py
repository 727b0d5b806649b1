"""What a data section makes of its settings; the settings themselves are tested in tests/config."""

from __future__ import annotations

from typing import Any

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.config.data import Dataset
from nest_ssl.config.section import read
from nest_ssl.data.audio import Decoding

SECTION = {"manifest_filepath": "m.json", "batch_size": 2}


@pytest.mark.parametrize(("rate", "wanted"), [(None, 8_000), (16_000, 16_000)])
def test_sample_rate_of_the_section_goes_first(rate: int | None, wanted: int) -> None:
    assert Decoding.of(read(Dataset, {**SECTION, "sample_rate": rate}), 8_000).sample_rate == wanted
    assert Decoding.of(read(Dataset, SECTION), 8_000) == Decoding(8_000, strict=True)


def test_how_files_are_decoded() -> None:
    options = {"int_values": True, "trim_silence": True, "channel_selector": "average"}
    wanted = Decoding(16_000, int_values=True, trim=True, channel_selector="average", strict=True, reader="pydub")
    assert Decoding.of(read(Dataset, {**SECTION, **options}), 16_000, "pydub") == wanted


@pytest.mark.parametrize("key", Dataset.REFUSED)
def test_refused_options_say_what_to_use(key: str) -> None:
    read(Dataset, {**SECTION, key: None})
    read(Dataset, {**SECTION, key: False})
    with pytest.raises(UserError, match=f"not supported: .*{key}"):
        read(Dataset, {**SECTION, key: True})


@pytest.mark.parametrize(("change", "message"), [
    ({"manifest_filepath": None}, "no manifest is given"),
    ({"manifest_filepath": "???"}, "no manifest is given"),
    ({"manifest_filepath": 5}, "manifest_filepath"),
    ({"batch_size": None}, "batch_size"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": 2.5}, "batch_size"),
    ({"batch_size": True}, "batch_size"),
    ({"num_workers": -1}, "num_workers"),
    ({"num_workers": None}, "num_workers"),
    ({"sample_rate": 0}, "sample_rate"),
    ({"min_duration": "1"}, "min_duration"),
    ({"max_duration": float("nan")}, "max_duration"),
    ({"min_duration": True}, "min_duration"),
    ({"channel_selector": "left"}, "channel_selector"),
    ({"channel_selector": []}, "channel_selector"),
    ({"batch_augmentor": None}, "no batch augmentor is named"),
    ({"batch_augmentor": {"prob": 0.5}}, "batch_augmentor._target_"),
])  # fmt: skip
def test_wrong_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(Dataset, {**SECTION, **change}, "model.train_ds")
    assert "\n" not in str(raised.value)


def test_our_config_is_a_section() -> None:
    cfg = compose(["run=full"])
    for section in (cfg.model.train_ds, cfg.model.validation_ds):
        assert read(Dataset, section).batch_augmentor is not None


@pytest.mark.parametrize(
    ("augmentor", "said"),
    [
        ({"white": {"prob": 1}}, "not supported: white: .*augmentor. Supported: gain, "),
        ({"impulse": {"prob": 1}}, "not supported: impulse: .*augmentor. It reads audio of a manifest of its own"),
        ({"transcode_aug": {"prob": 1}}, "not supported: transcode_aug: .*It is computed by the program sox"),
        ({"time_stretch": {"prob": 1, "num_rates": 0}}, "no rates; NeMo stops at it"),
        ({"time_stretch": {"prob": 1, "n_fft": 1}}, r"augmentor\.time_stretch\.n_fft"),
        ({"gain": {}}, r"a key is missing: augmentor\.gain\.prob"),
        ({"gain": {"prob": 1, "gain": 3}}, r"unknown key: augmentor\.gain\.gain"),
        ({"white_noise": {"prob": 1, "min_level": -46}}, "no whole dB below max_level -46"),
        ({"speed": {"prob": 1, "sr": 16000, "resample_type": "kaiser_best"}}, r"augmentor\.speed\.resample_type"),
        ({"speed": {"prob": 1, "sr": 16000, "resample_type": "fft", "num_rates": 0}}, "no rates; NeMo stops at it"),
        ({"random_segment": {"prob": 1, "pad_to_duration": True}}, "pads by a part of a sample"),
        ({"silence": {"prob": 1, "min_end_silence_secs": -1}}, "any number from 0"),
    ],
)
def test_perturbations_that_cannot_be(augmentor: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(Dataset, {**SECTION, "augmentor": augmentor})


def test_silence_has_no_order_as_in_nemo() -> None:
    silence = {"prob": 1, "min_end_silence_secs": 1}
    assert read(Dataset, {**SECTION, "augmentor": {"silence": silence}}).augmentor


def test_a_mistake_in_a_perturbation_names_its_section() -> None:
    with pytest.raises(UserError, match=r"model\.validation_ds\.augmentor\.gain\.prob"):
        read(Dataset, {**SECTION, "augmentor": {"gain": {"prob": 2}}}, "model.validation_ds")


def test_sizes_for_each_bucket() -> None:
    """Lhotse's, with the buckets that they are of; where NeMo stops, the line says so."""
    lhotse, bins = {**SECTION, "use_lhotse": True, "bucket_batch_size": [3, 2]}, {"bucket_duration_bins": [1.0, 2.0]}
    assert read(Dataset, {**lhotse, **bins, "batch_size": None}).bucket_batch_size == [3, 2]
    assert read(Dataset, {**lhotse, "max_duration": 5.0, "num_buckets": 3}).bucket_batch_size == [3, 2]
    for change, message in (
        ({}, "sizes of batches without the buckets that they are of"),
        ({**bins, "bucket_batch_size": [3]}, r"fewer sizes than buckets \(2\)"),
        ({"max_duration": 5.0, "num_buckets": 3, "batch_size": None}, "no size of a batch is given"),
        ({"bucket_duration_bins": [2.0, 1.0]}, "not from the shortest to the longest: bucket_duration_bins"),
        ({"use_lhotse": False}, "only Lhotse's sampler has buckets of so many utterances: bucket_batch_size"),
    ):
        with pytest.raises(UserError, match=message):
            read(Dataset, {**lhotse, **change})
