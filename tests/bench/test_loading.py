"""Loaders are timed as a whole and by stage."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from nest_ssl.bench import loading


def test_stages_of_a_loader_are_parts_of_what_is_profiled() -> None:
    found = loading.load([SimpleNamespace(audio=torch.zeros(8)), SimpleNamespace(audio=None)], 4)
    assert {*found["stages"]} == {*loading.STAGES, loading.PROFILED}
    assert 0 <= sum(found["stages"][stage] for stage in loading.STAGES) <= found["stages"][loading.PROFILED]
