"""Typed differences between two trees of plain settings, by dotted path.

Typed: `1`, `1.0`, `"1"` and `true` are four different settings. DeepDiff aligns lists: an inserted item is one change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from deepdiff import DeepDiff
from deepdiff.helper import NotPresent, notpresent

MISSING = "absent"  # stands for the value of a side that has no such setting


class Change(NamedTuple):
    """One setting that is not the same."""

    path: str
    reference: Any
    candidate: Any


def typed_diff(reference: Any, candidate: Any) -> list[Change]:
    """Every difference between two trees of dicts, lists and plain values, sorted by path."""
    texts = [json.dumps(tree, sort_keys=True, default=repr) for tree in (reference, candidate)]
    if texts[0] == texts[1]:  # DeepDiff is slow on long lists of files
        return []
    found = DeepDiff(reference, candidate, view="tree", ignore_nan_inequality=True, threshold_to_diff_deeper=0)
    changes = [
        Change(
            ".".join(str(part) for part in item.path(output_format="list")),
            *(MISSING if v is notpresent or isinstance(v, NotPresent) else v for v in (item.t1, item.t2)),
        )
        for items in found.values()
        for item in items
    ]
    return sorted(changes, key=lambda change: change.path)


def count_leaves(tree: Any) -> int:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return max(1, sum(count_leaves(child) for child in children)) if children is not None else 1


def split(tree: dict[str, Any], patterns: Iterable[str], path: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """`tree` without the dotted paths that match `patterns`, and those alone."""
    kept: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            taken[name] = value
        elif isinstance(value, dict):
            kept[key], below = split(value, patterns, name)
            taken |= below
        else:
            kept[key] = value
    return kept, taken
