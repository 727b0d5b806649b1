"""Another release of Lightning fails at import, with the release that was tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.train import lightning_internals
from nest_ssl.train.lightning_internals import check_release

PACKAGE = Path(lightning_internals.__file__).parents[1]


def test_the_release_that_was_read_passes() -> None:
    check_release()
    check_release("2.4.0")


@pytest.mark.parametrize("release", ["2.4.1", "2.5.0", "2.3.3"])
def test_another_release_is_refused(release: str) -> None:
    with pytest.raises(UserError, match=f"lightning {release}.*lightning==2.4.0"):
        check_release(release)


def test_a_name_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(lightning_internals.ModelCheckpoint, "_monitor_candidates")
    with pytest.raises(UserError, match="without ModelCheckpoint._monitor_candidates"):
        check_release()


def test_private_names_of_lightnings_stand_nowhere_else() -> None:
    """Imports of private names, and private attributes of a trainer or a loop."""
    private = re.compile(r"^from lightning.* import .*\b_\w|(trainer|loop|connector)\._[a-z]", re.MULTILINE)
    places = [path for room in ("train", "run") for path in (PACKAGE / room).rglob("*.py")]
    found = [path.name for path in places if private.search(path.read_text())]
    assert found == ["lightning_internals.py"]
