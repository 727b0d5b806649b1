"""Weights and settings in NeMo's and Lightning's files: what is taken, and what is no weight and no value."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.train.checkpoint.weights import check_finite, check_state_dict, load_weights, plain_settings


def saved(value: Any) -> io.BytesIO:
    torch.save(value, stream := io.BytesIO())
    stream.seek(0)
    return stream


def test_tensors_builtins_and_settings() -> None:
    settings = OmegaConf.create({"cfg": {"a": 1, "b": [1.5, "x", None, True], "c": "${cfg.a}"}})
    value = load_weights(saved({"w": torch.arange(3), "settings": settings, "n": (1, "a")}), "x")
    assert torch.equal(value["w"], torch.arange(3)) and value["n"] == (1, "a")
    assert plain_settings(value["settings"], "x") == {"cfg": {"a": 1, "b": [1.5, "x", None, True], "c": 1}}


@pytest.mark.parametrize("value", [[torch.ones(1)], {1: torch.ones(1)}, {"a": 1}, None])
def test_no_state_dict(value: Any) -> None:
    with pytest.raises(UserError, match="no state dict"):
        check_state_dict(value, "x")


@pytest.mark.parametrize(
    "settings",
    ["${oc.env:HOME}", "${a.${oc.env:X}}", "${${b}:x}", "x${oc.decode:'1'}", "${missing}", "${a"],
)
def test_settings_that_are_no_values(settings: str) -> None:
    with pytest.raises(UserError, match="the file"):
        plain_settings(OmegaConf.create({"a": settings} if settings != "${a" else {"a": {"b": "${a}"}}), "the file")


def test_values_that_only_look_like_it() -> None:
    given = {"a": "C:/x", "b": "x: y", "c": "$HOME", "d": "???"}
    assert plain_settings(given, "x") == given


def test_no_settings() -> None:
    for value in (OmegaConf.create([1]), 3, None):
        with pytest.raises(UserError, match="no settings"):
            plain_settings(value, "x")


def test_counts_and_floats_are_weights() -> None:
    given = {"w": torch.ones(2), "half": torch.ones(2).half(), "codes": torch.ones(2).double(), "seen": torch.tensor(3)}
    assert check_state_dict(given, "x") == given


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value: float) -> None:
    check_finite({"a": torch.ones(3)}, "x")
    with pytest.raises(UserError, match="NaN or infinite: x: b"):
        check_finite({"a": torch.ones(3), "b": torch.tensor([1.0, value])}, "x")
