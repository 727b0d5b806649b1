"""Garbage is not looked for while much is imported, and afterwards as before."""

from __future__ import annotations

import gc
import sys
import types

import pytest

from nest_ssl.run.importing import SOME, importing


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def bring(modules: int) -> None:
    for number in range(modules):
        sys.modules[f"made_up_{number}"] = types.ModuleType(f"made_up_{number}")


def fail_to_import() -> None:
    with importing():
        assert not gc.isenabled()
        raise ImportError("no such package")


@pytest.mark.parametrize("looked", [True, False])
def test_it_rests_inside_and_is_what_it_was_behind_even_where_importing_fails(looked: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if looked else gc.disable)()
        with pytest.raises(ImportError):
            fail_to_import()
        assert gc.isenabled() == looked
    finally:
        (gc.enable if before else gc.disable)()


def test_what_was_brought_is_not_looked_through_later() -> None:
    before = gc.get_freeze_count()
    with importing():
        bring(SOME + 1)
    assert gc.get_freeze_count() > before + SOME


def test_where_nothing_new_came_the_garbage_of_an_earlier_training_stays_garbage() -> None:
    before = gc.get_freeze_count()
    with importing():
        bring(1)
    assert gc.get_freeze_count() == before
