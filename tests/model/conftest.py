"""The tiny model's configuration, as `size=tiny` gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nest_ssl.config.compose import compose
from nest_ssl.model.nest import NestModel


@pytest.fixture
def tiny() -> dict[str, Any]:
    """`model:`, in a form that tests can edit."""
    return compose(["size=tiny", "run=full"]).model


@pytest.fixture
def build(tiny: dict[str, Any]) -> Callable[..., NestModel]:
    """`build(seed=0)`: the tiny model from a seed."""

    def make(seed: int = 0) -> NestModel:
        torch.manual_seed(seed)
        return NestModel(tiny)

    return make
