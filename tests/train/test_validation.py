"""The validation loss: a mean a loader, and the names that NeMo gives (`against_nemo/test_logging.py` runs NeMo)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nest_ssl.base.errors import UserError
from nest_ssl.train.validation import ValidationLosses, loss_prefixes


def section(folder: Path, *names: str, **more: Any) -> dict[str, Any]:
    for name in names:
        (folder / name).write_text("{}\n")
    return {"manifest_filepath": [str(folder / name) for name in names], **more}


def test_one_loader() -> None:
    losses = ValidationLosses(OmegaConf.create({"manifest_filepath": "a.json"}))
    assert losses.take() == {}, "no batch, no loss"
    batches = torch.tensor([0.1, 0.2, 0.7])
    for loss in batches:
        losses.add(loss, 0)
    assert losses.take() == {"val_loss": batches.mean()}
    losses.add(torch.tensor(float("nan")), 0)
    assert losses.take()["val_loss"].isnan(), "what came before is forgotten"


@pytest.mark.parametrize("main", [0, 1])
def test_two_loaders(tmp_path: Path, main: int) -> None:
    losses = ValidationLosses(section(tmp_path, "dev_manifest.json", "my-dataset.json", val_dl_idx=main))
    values = [torch.tensor(1.0), torch.tensor(2.0)]
    for number, value in enumerate(values):
        losses.add(value, number)
    assert losses.take() == {"dev_val_loss": 1.0, "my_val_loss": 2.0, "val_loss": values[main]}
    losses.add(values[1 - main], 1 - main)
    assert "val_loss" not in losses.take(), "the loader that counts gave no batch"


def test_no_validation() -> None:
    assert ValidationLosses(None).take() == {}


def test_prefixes(tmp_path: Path) -> None:
    assert loss_prefixes(section(tmp_path, "manifest.json")) == [""]
    assert loss_prefixes(section(tmp_path, "a.json", "b-c_manifest.json")) == ["a_", "b_c_"]
    assert loss_prefixes(section(tmp_path, "a.json", "b.json", name=["x", "y-dataset"])) == ["x_", "y_"]


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (["a.json", "manifest.json"], {}, "cannot be named: .*manifest.json"),
        (["a.json", "b.json"], {"name": ["x"]}, "Give a list of 2 names"),
        (["a.json", "b.json"], {"name": "xy"}, "Give a list of 2 names"),
    ],
)
def test_mistakes(tmp_path: Path, names: list[str], more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loss_prefixes(section(tmp_path, *names, **more))
