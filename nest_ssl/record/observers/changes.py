"""A table as it stands, kept as far as it differs from a file of the recording: between two steps little changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from nest_ssl.base.nested import leaves
from nest_ssl.base.safe_load import load_tensors
from nest_ssl.record.observers.copies import same_bits


def changes(
    table: Iterable[tuple[str, Any]], folder: Path, base: str, part: Callable[[Any], dict[str, Any]] = dict
) -> dict[str, Any]:
    """The content of `step_start.pt`: `entries` of `table` that are not the same in file `base`, and all `names`.

    Args:
        table: names and (nested) values; tensors may be anywhere, and are not copied.
        folder: of the recording in the making.
        base: name of the file below it; empty: there is none, and everything is kept.
        part: takes the table out of the file's content.
    """
    recorded = part(load_tensors(folder / base, mapped=True)) if base else {}
    names, entries = [], {}
    for name, value in table:
        names.append(name)
        if name not in recorded or not same(value, recorded[name]):
            entries[name] = value
    return {"base": base, "names": names, "entries": entries}


def same(value: Any, recorded: Any) -> bool:
    """Whether two nested values are the same, tensors by their bits."""
    one, other = dict(leaves(value)), dict(leaves(recorded))
    return list(one) == list(other) and all(
        same_bits(leaf, other[path])
        if isinstance(leaf, torch.Tensor) and isinstance(other[path], torch.Tensor)
        else type(leaf) is type(other[path]) and bool(leaf == other[path])
        for path, leaf in one.items()
    )
