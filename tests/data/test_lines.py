"""Lines as columns give back what was put in, to the type, in a fraction of the memory."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from nest_ssl.data import lines as module
from nest_ssl.data.lines import Entry, Joined, Lines, Place, within

SECONDS = [None, 0, 3, 0.0, 2.5, 1e9, 0.1 + 0.2]
PATHS = ["a.wav", "/x/a.wav", "/x/y/b b.wav", "/", "", "ü/日本.flac", "/x/\udc80.wav", ["/x/l.wav", "/x/r.wav"],
         ["one.wav"], "/x/a.wav"]  # fmt: skip


def some(paths: Sequence[str | list[str]] = PATHS) -> list[Entry]:
    return [
        Entry(path, SECONDS[number % 7], SECONDS[number * 3 % 7], Place("m.json", 2 * number + 1), f"text {number}")
        for number, path in enumerate(paths)
    ]


@pytest.mark.parametrize("folders", [1, 2, 1 << 16])
def test_what_is_put_in_comes_out(folders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLDERS_AT_MOST", folders)
    entries = some()
    lines = Lines("m.json", iter(entries), transcripts=True)
    assert list(lines) == entries and len(lines) == len(entries)
    assert [type(line.duration) for line in lines] == [type(entry.duration) for entry in entries]
    assert lines[-1] == entries[-1] and list(lines[1:8:3]) == entries[1:8:3] and list(lines[::-1]) == entries[::-1]
    assert list(pickle.loads(pickle.dumps(lines))[2:]) == entries[2:], "a worker that is spawned gets them too"
    with pytest.raises(IndexError):
        lines[len(entries)]
    assert {line.text for line in Lines("m.json", entries)} == {""} and list(Lines("m.json", [])) == []


@pytest.mark.parametrize("kind", [list, lambda entries: Lines("m.json", entries, transcripts=True)])
def test_limits(kind: Callable[[list[Entry]], Sequence[Entry]]) -> None:
    entries = some()
    for shortest, longest in ((None, None), (0, None), (2.5, None), (None, 2.5), (0.3, 3), (5, 1)):
        shorter = [e for e in entries if e.duration is not None and shortest is not None and e.duration < shortest]
        longer = [e for e in entries if e.duration is not None and longest is not None and e.duration > longest
                  and e not in shorter]  # fmt: skip
        kept, *counts = within(kind(entries), shortest, longest)
        assert counts == [len(shorter), len(longer)]
        assert list(kept) == [entry for entry in entries if entry not in shorter + longer]
    joined = Joined([within(kind(entries), 2.5, None)[0], kind([]), kind(entries[:2])])
    assert list(joined) == [*within(entries, 2.5, None)[0], *entries[:2]] and joined[-1] == entries[1]
    assert list(joined[::2]) == list(joined)[::2]


def test_a_line_takes_its_name_and_thirty_bytes() -> None:
    """An object takes ten times as much, and each worker that looks at it makes a copy."""
    count, name = 4_000, 16
    entries = (Entry(f"/speech/{number % 50:02d}/{number:012d}.wav", 2.5, None, Place("m", number), "")
               for number in range(count))  # fmt: skip
    tracemalloc.start()
    lines = Lines("m", entries)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lines) == count and size / count < name + 36 and peak / count < name + 50
