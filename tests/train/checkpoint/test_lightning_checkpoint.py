"""Lightning checkpoints: written with what NeMo needs, read without running what is in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.weights import load_weights
from nest_ssl.train.module import NestModule


def opened_safely(path: Path) -> Any:
    return load_weights(path)


def test_round_trip(checkpoint: Callable[..., Path], tiny: Callable[..., NestModule]) -> None:
    config, state_dict = load_checkpoint(path := checkpoint("a", seed=3))
    model = tiny(seed=3)
    assert config is not None and config["target"].endswith(".EncDecDenoiseMaskedTokenPredModel")
    assert list(state_dict) == list(model.state_dict())
    restored = NestModule.load_from_checkpoint(path)
    for weights in (state_dict, restored.state_dict()):
        assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert restored.settings == OmegaConf.create(config)


def test_what_nemo_needs_is_in_it(checkpoint: Callable[..., Path]) -> None:
    value = opened_safely(checkpoint("a"))
    assert type(value["hyper_parameters"]) is type(value["hyper_parameters"].cfg) is value["hparams_type"] is DictConfig
    assert value["hparams_name"] == "kwargs" and value["pytorch-lightning_version"]


class Evil:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks"])
def test_code_in_it_is_not_run(tmp_path: Path, checkpoint: Callable[..., Path], place: str) -> None:
    value = opened_safely(checkpoint("good"))
    torch.save({**value, place: {"x": Evil(tmp_path / "trap")}}, tmp_path / "evil.ckpt")
    for read in (load_checkpoint, NestModule.load_from_checkpoint):
        with pytest.raises(UserError, match="mkdir"):
            read(tmp_path / "evil.ckpt")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda value: {"epoch": 1}, "has no state_dict"),
        (lambda value: value["state_dict"], "has no state_dict"),
        (lambda value: {**value, "state_dict": {"a": 1}}, "no state dict"),
        (lambda value: [1], "has no state_dict"),
        (lambda value: {**value, "hyper_parameters": {"cfg": "${oc.env:HOME}"}}, "oc.env"),
        (lambda value: {**value, "hyper_parameters": {"cfg": [1]}}, "no settings"),
        (lambda value: {**value, "hyper_parameters": {"cfg": "text"}}, "no settings"),
        (lambda value: {**value, "hyper_parameters": torch.ones(3)}, "no settings"),
        (lambda value: {**value, "hyper_parameters": torch.zeros(0)}, "no settings"),
        (lambda value: {**value, "state_dict": {"a": torch.ones(1).bool()}}, "cannot be a weight"),
        (lambda value: {**value, "hyper_parameters": 3}, "no settings"),
    ],
)
def test_not_what_it_should_be(tmp_path: Path, checkpoint: Callable[..., Path], change: Any, told: str) -> None:
    value = opened_safely(checkpoint("good"))
    torch.save(change(value), path := tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=told) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


def test_without_settings_the_weights_can_be_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}}, path := tmp_path / "bare.ckpt")
    assert load_checkpoint(path)[0] is None
    with pytest.raises(UserError, match="without its settings"):
        NestModule.load_from_checkpoint(path)


def test_a_flipped_bit_is_found(tmp_path: Path, checkpoint: Callable[..., Path]) -> None:
    """33 of 150 such files were loaded as other weights."""
    whole = checkpoint("a").read_bytes()
    start = whole.index(b"data/0")  # the first tensor's record lies behind its name
    for place in (start + 100, len(whole) // 2, len(whole) // 3):
        content = bytearray(whole)
        content[place] ^= 16
        (tmp_path / "b.ckpt").write_bytes(content)
        with pytest.raises(UserError, match="damaged.*checksum"):
            load_checkpoint(tmp_path / "b.ckpt")
