"""What tests of commands share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training in this process sets no allocator for the tests behind it."""
    monkeypatch.setattr("nest_ssl.cli.train.keep_freed_memory", bool)
