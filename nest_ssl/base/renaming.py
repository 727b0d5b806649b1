"""Names of modules read as others: `encoder.blocks.0.norm` as `encoder.layers.0.norm`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")
COMPILED = "_orig_mod"  # the name of what torch.compile has wrapped, in its wrapper


class Rename:
    """From the candidate's name of a module, parameter or buffer to the reference's; this one leaves all as they are.

    `nest_ssl.compare.name_map` reads others from a file.
    """

    def __call__(self, name: str) -> str:
        return name

    def changes(self, name: str) -> bool:
        """Whether the parameter or buffer of this name is read as another tensor: transposed, split, fused, ..."""
        return False


class NameMap:
    """The names of one tree of modules, under which some have another's.

    Args:
        rename: from a name to the one that it is read as; None: all names stay.
        modules: all names of modules there.
    """

    def __init__(self, rename: Rename | None, modules: Iterable[str]) -> None:
        self.rename: Rename = rename or Rename()
        self.given = {self.rename(name) for name in modules if self.rename(name) != name}

    def stays(self, name: str) -> bool:
        """Whether what has this name is not in the place of something that is given it, as a wrapper is."""
        return self.rename(name) != name or name not in self.given

    def table(self, values: Mapping[str, V]) -> dict[str, V]:
        """A table by name."""
        return {self.rename(name): value for name, value in values.items() if self.stays(name)}

    def tensors(self, values: Mapping[str, V]) -> dict[str, V]:
        """A table of parameters or buffers as they are; one that is read as another tensor has no name of that side."""
        own = {f"{name} (another tensor)": value for name, value in values.items() if self.rename.changes(name)}
        return self.table({name: value for name, value in values.items() if not self.rename.changes(name)}) | own

    def names(self, names: Iterable[str]) -> list[str]:
        return [self.rename(name) for name in names if self.stays(name)]
