"""Sections of the config: what is known, refused, and missing."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.config.compose import compose
from nest_ssl.data.settings import REFUSED, allowed_keys, read_settings

SECTION = {"manifest_filepath": "m.json", "batch_size": 2}


def test_defaults() -> None:
    settings = read_settings(SECTION, 8_000)
    assert (settings.manifests, settings.noise_manifests, settings.augmentor) == (["m.json"], None, None)
    assert (settings.shuffle, settings.drop_last, settings.pin_memory, settings.num_workers) == (False, False, False, 0)
    assert (settings.min_duration, settings.max_duration, settings.decoding.sample_rate) == (None, None, 8_000)
    assert settings.decoding.strict
    assert read_settings(SECTION, shuffle=True).shuffle
    assert not read_settings({**SECTION, "shuffle": False}, shuffle=True).shuffle


@pytest.mark.parametrize(("rate", "wanted"), [(None, 8_000), (16_000, 16_000)])
def test_sample_rate_of_the_section_goes_first(rate: int | None, wanted: int) -> None:
    assert read_settings({**SECTION, "sample_rate": rate}, 8_000).decoding.sample_rate == wanted


@pytest.mark.parametrize("key", REFUSED)
def test_refused_options_say_what_to_use(key: str) -> None:
    read_settings({**SECTION, key: None})
    read_settings({**SECTION, key: {} if key == "augmentor" else False})
    with pytest.raises(UserError, match=f"not supported: {key}="):
        read_settings({**SECTION, key: {"white_noise": {"prob": 1}} if key == "augmentor" else True})


@pytest.mark.parametrize(("change", "message"), [
    ({"manifest_filepath": None}, "no manifest is given"),
    ({"manifest_filepath": "???"}, "no manifest is given"),
    ({"manifest_filepath": 5}, "not a manifest"),
    ({"batch_size": None}, "not a whole number: batch_size=None"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"batch_size": 2.5}, "batch_size=2.5"),
    ({"batch_size": True}, "batch_size=True"),
    ({"num_workers": -1}, "num_workers=-1"),
    ({"num_workers": None}, "num_workers=None"),
    ({"sample_rate": 0}, "sample_rate=0"),
    ({"min_duration": "1"}, "not a number of seconds: min_duration=1"),
    ({"channel_selector": "left"}, "not a channel: channel_selector=left"),
    ({"channel_selector": []}, "not a channel"),
    ({"batch_augmentor": None}, "no batch augmentor is named"),
    ({"batch_augmentor": {"prob": 0.5}}, "no such batch augmentor"),
])  # fmt: skip
def test_wrong_values(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings({**SECTION, **change})


def test_every_key_of_our_config_is_allowed() -> None:
    cfg = compose(["run=full"])
    for section in (cfg.model.train_ds, cfg.model.validation_ds):
        assert set(section) <= allowed_keys("dataset")
        assert set(section.batch_augmentor) <= allowed_keys("batch_augmentor")
        read_settings(section)
    assert allowed_keys("anything else") == set()


def test_references_are_resolved() -> None:
    cfg = OmegaConf.create({"rate": 8_000, "ds": {**SECTION, "sample_rate": "${rate}", "channel_selector": [1]}})
    assert read_settings(cfg.ds).decoding.sample_rate == 8_000
    assert read_settings(dict(cfg.ds)).decoding.channel_selector == [1]
