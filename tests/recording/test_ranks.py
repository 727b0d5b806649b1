"""The index of several ranks: what it completes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.recording import layout as files
from nest_ssl.recording.index import sealed
from nest_ssl.recording.ranks import read_ranks, write_ranks
from nest_ssl.recording.reader import open_recording
from nest_ssl.recording.writer import check_target


@pytest.fixture
def ranks(whole: Path, tmp_path: Path) -> Path:
    """A recording of two ranks, of which each says which it is."""
    folder = tmp_path / "ranks"
    for rank in range(2):
        own = Path(shutil.copytree(whole, folder / files.rank_folder(rank))) / files.INDEX
        own.write_text(json.dumps(sealed({**json.loads(own.read_text()), "world_size": 2, "rank": rank})))
    write_ranks(folder, 2)
    return folder


def test_each_rank_is_a_recording_of_its_own(ranks: Path, whole: Path) -> None:
    found = read_ranks(ranks)
    assert found == [ranks / "rank_0", ranks / "rank_1"]
    assert read_ranks(whole) is None and read_ranks(ranks / "nothing") is None
    one = open_recording(found[1])
    assert (one.index.rank, one.index.world_size, one.world_size) == (1, 2, 1)
    assert one.step(0).loss() is not None  # its steps lie where those of one process do
    assert open_recording(whole).index.rank is None


def test_the_whole_is_not_opened_as_one(ranks: Path) -> None:
    with pytest.raises(UserError, match=r"a recording of several ranks.*Give one rank: .*rank_0"):
        open_recording(ranks)
    with pytest.raises(UserError, match="an earlier recording is there"):
        check_target(ranks, overwrite=False)
    check_target(ranks, overwrite=True)


def test_a_rank_that_is_missing_or_another_is_named(ranks: Path, whole: Path) -> None:
    def refused() -> str:
        with pytest.raises(UserError) as error:
            read_ranks(ranks)
        return str(error.value)

    index = ranks / "rank_1" / files.INDEX
    before = index.read_text()
    index.write_text(before + "\n")
    assert "rank_1 is not the recording that" in refused()
    index.write_text(json.dumps(sealed({**json.loads(before), "rank": 0})))
    write_ranks(ranks, 2)
    assert "rank 0 of 2, not 1 of 2" in refused()
    index.unlink()
    assert "rank_1 has no recording.json" in refused()
    with pytest.raises(UserError, match="rank 1 of 2 is not recorded"):
        write_ranks(ranks, 2)
    content = json.loads((ranks / files.RANKS).read_text())
    (ranks / files.RANKS).write_text(json.dumps({**content, "world_size": 3}))
    assert "differs from its own SHA-256" in refused()
    (ranks / files.RANKS).write_text(json.dumps(sealed({**content, "world_size": 3})))
    assert "does not name rank_0 to rank_2" in refused()
