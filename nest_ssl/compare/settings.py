"""Typed differences between two trees of plain settings, by dotted path.

Typed: `1`, `1.0`, `"1"` and `true` are four different settings. DeepDiff aligns lists: an inserted item is one change.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deepdiff import DeepDiff
from deepdiff.helper import NotPresent, notpresent


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is not the same; `ABSENT` marks the side that has none."""

    path: str
    reference: Any
    candidate: Any


ABSENT = "absent"


def typed_diff(reference: Any, candidate: Any) -> list[Change]:
    """Every difference between two trees of dicts, lists and plain values, sorted by path."""
    if _text(reference) == _text(candidate):  # DeepDiff is slow on long lists of files
        return []
    found = DeepDiff(reference, candidate, view="tree", ignore_nan_inequality=True, threshold_to_diff_deeper=0)
    changes = [_change(item) for items in found.values() for item in items]
    return sorted(changes, key=lambda change: change.path)


def count_leaves(tree: Any) -> int:
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else None
    return max(1, sum(count_leaves(child) for child in children)) if children is not None else 1


def without(tree: Any, ignored: frozenset[str], path: str = "") -> Any:
    """`tree` without the dotted paths in `ignored`."""
    if not isinstance(tree, dict):
        return tree
    named = {key: f"{path}.{key}" if path else str(key) for key in tree}
    return {key: without(tree[key], ignored, name) for key, name in named.items() if name not in ignored}


def _text(tree: Any) -> str:
    return json.dumps(tree, sort_keys=True, default=repr)


def _change(item: Any) -> Change:
    path = ".".join(str(part) for part in item.path(output_format="list"))
    return Change(path, _value(item.t1), _value(item.t2))


def _value(value: Any) -> Any:
    return ABSENT if value is notpresent or isinstance(value, NotPresent) else value
