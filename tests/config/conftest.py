"""Hydra takes a tenth of a second to compose our files; here it does so once for each choice of size and run."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
from omegaconf import DictConfig

from nest_ssl.config import compose


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> None:
    by_hydra = compose._compose_groups
    once = functools.lru_cache(maxsize=None)(lambda groups: by_hydra(compose.CONF, compose.DEFAULT_NAME, list(groups)))

    def compose_groups(folder: Path, name: str, groups: list[str]) -> DictConfig:
        ours = folder == compose.CONF and name == compose.DEFAULT_NAME
        return copy.deepcopy(once(tuple(groups))) if ours else by_hydra(folder, name, groups)

    compose._compose_groups = compose_groups
