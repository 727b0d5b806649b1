"""Archives that a training run leaves: the model at its end, the best one, or one with every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.train.checkpoint.lightning_checkpoint import load_checkpoint
from nest_ssl.train.checkpoint.nemo_archive import load_nemo
from tests.train.checkpoint.resuming import last, train

PARAMS = "exp_manager.checkpoint_callback_params"


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_training_that_ends_leaves_an_archive_of_the_model(tmp_path: Path) -> None:
    train(tmp_path, "trainer.max_epochs=1")
    config, weights = load_nemo(tmp_path / "x" / "checkpoints" / "x.nemo")
    assert same(weights, last(tmp_path)["state_dict"])
    assert config["num_classes"] == 128 and config["target"].endswith("EncDecDenoiseMaskedTokenPredModel")


@pytest.mark.parametrize("always", [False, True])
def test_the_best_model_is_the_best_checkpoints(tmp_path: Path, always: bool) -> None:
    """With a rate that is small enough the loss falls; where the largest is the best, that is the first validation."""
    options = [f"{PARAMS}.save_best_model=true", f"{PARAMS}.mode=max", "model.optim.lr=0.05"]
    options += [f"{PARAMS}.always_save_nemo=true", f"{PARAMS}.save_nemo_on_train_end=false"] if always else []
    train(tmp_path, "trainer.max_epochs=3", *options)
    folder = tmp_path / "x" / "checkpoints"
    (best,) = (path for path in folder.glob("*.ckpt") if "-last" not in path.name)
    assert "epoch=0" in best.name
    weights = load_nemo(folder / "x.nemo")[1]
    assert same(weights, load_checkpoint(best)[1])
    assert not same(weights, last(tmp_path)["state_dict"])


def test_an_archive_with_every_checkpoint(tmp_path: Path) -> None:
    options = [f"{PARAMS}.always_save_nemo=true", f"{PARAMS}.save_nemo_on_train_end=false", f"{PARAMS}.postfix=.tar"]
    train(tmp_path, "trainer.max_epochs=2", *options)
    assert same(load_nemo(tmp_path / "x" / "checkpoints" / "x.tar")[1], last(tmp_path)["state_dict"])


def test_none_if_not_asked_for(tmp_path: Path) -> None:
    train(tmp_path, "trainer.max_epochs=1", f"{PARAMS}.save_nemo_on_train_end=false")
    assert not list(tmp_path.rglob("*.nemo"))
