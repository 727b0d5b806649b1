"""A manifest's lines of speech as columns: of ten million, numbers and letters are kept, not objects.

An object for each line takes 300 bytes, and whoever looks at one writes to it (Python counts who does), so that each
worker process comes to hold a copy of them all. Here a line takes about 30 bytes and its file's name, and a worker
shares them; an `Entry` is made when it is asked for.
"""

from __future__ import annotations

import bisect
import itertools
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np

Seconds = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]

FOLDERS_AT_MOST = 1 << 16  # beyond so many, folders are written out with the names
BETWEEN = "\0"  # of the files that make one recording: no path has it
ABSENT, WHOLE, FRACTION = range(3)  # of a number of seconds: not given, an integer, a float


class Place(NamedTuple):
    """A line of a manifest, counted from 1."""

    manifest: str
    line: int

    def __str__(self) -> str:
        return f"{self.manifest}, line {self.line}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A piece of speech.

    Args:
        audio_file: path, or paths of single-channel files that together make one recording.
        duration: seconds to read from `offset`; None or 0: to the end.
        offset: seconds from the start; None is 0.
        place: the line that names it.
        text: its transcript, where transcripts are asked for.
    """

    audio_file: str | list[str]
    duration: float | None
    offset: float | None
    place: Place
    text: str = ""


class Strings:
    """Strings one behind another in one piece of memory."""

    def __init__(self) -> None:
        self._letters, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._letters += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._letters))

    def __getitem__(self, number: int) -> str:
        return self._letters[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")


class Entries(Sequence[Entry]):
    """Entries that are made when they are asked for; slices of them are, too."""

    def entry(self, number: int) -> Entry:
        """The entry of a number from 0 to below the length."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...

    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return Chosen(self, range(len(self))[index])
        return self.entry(range(len(self))[index])

    def __iter__(self) -> Iterator[Entry]:
        return map(self.entry, range(len(self)))


class Lines(Entries):
    """The entries of one manifest, in order.

    Args:
        manifest: its path, as the configuration has it.
        entries: what its lines name; each is let go of once its values are noted.
        transcripts: whether their texts are kept.

    Attributes:
        durations: seconds, float64 [N]; NaN where there are none.
    """

    durations: Seconds

    def __init__(self, manifest: str, entries: Iterable[Entry], transcripts: bool = False) -> None:
        self.manifest = manifest
        self._names, self._texts, self._folders = Strings(), Strings() if transcripts else None, {"": 0}
        self._folder, self._kinds, self._numbers = array("H"), array("B"), array("I")
        seconds = array("d"), array("d")
        for entry in entries:
            several = isinstance(entry.audio_file, list)
            path = BETWEEN.join(entry.audio_file) if isinstance(entry.audio_file, list) else entry.audio_file
            folder = path[: path.rfind("/") + 1]
            if folder not in self._folders and len(self._folders) < FOLDERS_AT_MOST:
                self._folders[folder] = len(self._folders)
            known = self._folders.get(folder)
            self._folder.append(known or 0)
            self._names.append(path if known is None else path[len(folder) :])
            if self._texts is not None:
                self._texts.append(entry.text)
            self._numbers.append(entry.place.line)
            kinds = int(several)
            for column, value in zip(seconds, (entry.duration, entry.offset), strict=True):
                column.append(math.nan if value is None else value)
                kinds = kinds << 2 | (ABSENT if value is None else WHOLE if isinstance(value, int) else FRACTION)
            self._kinds.append(kinds)
        self.durations, self._offsets = (np.asarray(column, np.float64) for column in seconds)
        self._prefixes = list(self._folders)

    def __len__(self) -> int:
        return len(self._kinds)

    def entry(self, number: int) -> Entry:
        kinds = self._kinds[number]
        path = self._prefixes[self._folder[number]] + self._names[number]
        duration, offset = (
            None if kind == ABSENT else int(column[number]) if kind == WHOLE else float(column[number])
            for kind, column in ((kinds >> 2 & 3, self.durations), (kinds & 3, self._offsets))
        )
        audio_file = path.split(BETWEEN) if kinds >> 4 else path
        text = "" if self._texts is None else self._texts[number]
        return Entry(audio_file, duration, offset, Place(self.manifest, self._numbers[number]), text)


class Chosen(Entries):
    """Some of other entries, by their numbers."""

    def __init__(self, of: Sequence[Entry], numbers: Numbers | range) -> None:
        self.of, self.numbers = of, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def entry(self, number: int) -> Entry:
        return self.of[int(self.numbers[number])]


class Joined(Entries):
    """Entries one behind another."""

    def __init__(self, parts: Sequence[Sequence[Entry]]) -> None:
        self.parts = parts
        self.ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def entry(self, number: int) -> Entry:
        part = bisect.bisect_right(self.ends, number)
        return self.parts[part][number - (self.ends[part - 1] if part else 0)]


def within(lines: Sequence[Entry], shortest: float | None, longest: float | None) -> tuple[Sequence[Entry], int, int]:
    """The entries within limits in seconds (of unknown duration: all); how many are shorter, and longer."""
    durations = lines.durations if isinstance(lines, Lines) else np.array(
        [math.nan if entry.duration is None else entry.duration for entry in lines], np.float64
    )  # fmt: skip
    shorter = np.less(durations, -math.inf if shortest is None else shortest)
    longer = np.greater(durations, math.inf if longest is None else longest) & ~shorter
    out = shorter | longer
    kept = Chosen(lines, np.flatnonzero(~out)) if out.any() else lines
    return kept, int(shorter.sum()), int(longer.sum())
