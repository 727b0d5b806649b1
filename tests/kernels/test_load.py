"""When the loops are imported."""

from __future__ import annotations

import contextlib
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_nest.py"


@pytest.mark.parametrize(("device", "first"), [("cpu", ["loops", "model"]), ("meta", ["model"])])
def test_before_the_model_on_a_cpu(device: str, first: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What numba allocates would else lie between weights that are freed again: 0.3 GB of large could not be used."""
    order: list[str] = []
    monkeypatch.setattr("nest_ssl.kernels.available.load", lambda: order.append("loops"))
    monkeypatch.setattr("nest_ssl.train.checkpoint.init_from.init_from_pretrained", lambda *_: None)
    monkeypatch.setattr("nest_ssl.train.checkpoint.init_from.loading_sources", lambda _: contextlib.nullcontext())
    build_model = runpy.run_path(str(SCRIPT))["build_model"]
    build_model.__globals__["load_model_class"] = lambda _: lambda *_: order.append("model")
    trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device(device)))
    given = {"bad_audio": "stop", "no_masked_token": "stop", "seeded_data": False, "model": {}, "nemo": "3.0.0"}
    build_model(OmegaConf.create(given), trainer)
    assert order == first
