"""What is done once for all tests and for all programs of the warm Python, before any of them is forked.

Hydra reads our files and merges the groups in a third of a second, and its grammar takes milliseconds for an override;
the installed packages are hundreds of files to read. None of it changes while tests run.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from nest_ssl.config import compose

Compose = Callable[[Path, str, list[str]], DictConfig]
OFTEN = (["size=tiny"], ["size=tiny", "run=full"], ["size=tiny", "run=train"])


def composing_once(original: Compose) -> Compose:
    """As `original`, which composes our own files once for each choice of groups; every caller has a copy."""
    composed: dict[tuple[str, ...], DictConfig] = {}

    def compose_groups(folder: Path, name: str, groups: list[str]) -> DictConfig:
        if folder != compose.CONF:
            return original(folder, name, groups)
        if (key := (name, *groups)) not in composed:
            composed[key] = original(folder, name, groups)
        return copy.deepcopy(composed[key])

    return compose_groups


def warm_up() -> None:
    """In the server of the warm Python: compose what programs ask for most, and read the installed packages."""
    from nest_ssl.record.provenance import _installed

    compose._compose_groups = composing_once(compose._compose_groups)
    compose._parse = functools.cache(compose._parse)
    for groups in OFTEN:
        compose.compose([*groups, "seed=1"])  # a key as well, for the grammar of overrides
    _installed()
