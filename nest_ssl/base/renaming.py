"""Names of modules read as others: `encoder.blocks.0.norm` as `encoder.layers.0.norm`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")
COMPILED = "_orig_mod"  # the name of what torch.compile has wrapped, in its wrapper
Rename = Callable[[str], str]


def renaming(names: Mapping[str, str]) -> Rename:
    """A function from the candidate's names (of modules, parameters, buffers) to the reference's.

    Args:
        names: the reference's name by the candidate's; * stands for one part of it, what lies below follows, and the
            longest that fits counts.
    """
    longest = sorted(names, key=lambda name: -len(name.split(".")))
    patterns = [(re.compile(re.escape(name).replace(r"\*", r"([^.]+)") + r"(?=\.|$)"), names[name]) for name in longest]

    def rename(name: str) -> str:
        for pattern, target in patterns:
            match = pattern.match(name)
            if match:
                for part in match.groups():
                    target = target.replace("*", part, 1)
                return ".".join(part for part in (target, name[match.end() :].lstrip(".")) if part)
        return name

    return rename


class NameMap:
    """The names of one tree of modules, under which some have another's.

    Args:
        rename: from a name to the one that it is read as; None: all names stay.
        modules: all names of modules there.
    """

    def __init__(self, rename: Rename | None, modules: Iterable[str]) -> None:
        self.rename: Rename = rename or str
        self.given = {self.rename(name) for name in modules if self.rename(name) != name}

    def stays(self, name: str) -> bool:
        """Whether what has this name is not in the place of something that is given it, as a wrapper is."""
        return self.rename(name) != name or name not in self.given

    def table(self, values: Mapping[str, V]) -> dict[str, V]:
        """A table by name."""
        return {self.rename(name): value for name, value in values.items() if self.stays(name)}

    def names(self, names: Iterable[str]) -> list[str]:
        return [self.rename(name) for name in names if self.stays(name)]
