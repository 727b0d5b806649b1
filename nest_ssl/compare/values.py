"""Compares values leaf by leaf: tensors by their bits, everything else by type and value."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.base.progress import advance
from nest_ssl.compare.bits import same_bits
from nest_ssl.compare.findings import Difference, Finding, Spot
from nest_ssl.compare.metrics import Metrics, measure, typical_row
from nest_ssl.compare.rules import Rule
from nest_ssl.recording.tensors import stored_alike

# What was measured between two storages of one pair of mapped files (None: the same bits). Addresses are used again
# once a file is unmapped, so it must not outlive the function that holds both files open.
Measured = dict[tuple[Any, ...], Metrics | None]
Leaves = Mapping[str, Any]


@dataclass(slots=True)
class Comparer:
    """Compares leaves under one rule, and counts the tensors that it has seen."""

    rule: Rule
    tensors: int = 0
    tensors_same: int = 0
    bytes: int = 0

    def nested(self, spot: Spot, reference: Any, candidate: Any, measured: Measured | None = None) -> list[Finding]:
        """Differences between two nested values, in the reference's order.

        Args:
            spot: of the whole.
            measured: results by storage, where tensors of one file stand in many places; see `Measured`.
        """
        return self.leaves(spot, flatten(reference), flatten(candidate), measured)

    def leaves(
        self, spot: Spot, reference: Leaves, candidate: Leaves, measured: Measured | None = None
    ) -> list[Finding]:
        """Differences between two tables of leaves by path below `spot`."""
        found = []
        for path, one, other in pairs(reference, candidate):
            here = spot.inside(path)
            if one is ABSENT or other is ABSENT:
                found.append(absent(here, one, other))
            elif difference := self.leaf(here, one, other, measured):
                found.append(difference)
        return found

    def leaf(self, spot: Spot, reference: Any, candidate: Any, measured: Measured | None = None) -> Finding | None:
        """The difference between two leaves, or None where they are the same."""
        if isinstance(reference, Tensor) and isinstance(candidate, Tensor):
            self.tensors += 1
            found = self._tensors(spot, reference, candidate, {} if measured is None else measured)
            self.tensors_same += found is None
            return found
        if reference is None and candidate is None:
            return None
        if reference is None or candidate is None:
            return spot.finding(Difference.NONE, describe(reference), describe(candidate))
        if type(reference) is not type(candidate):
            return spot.finding(Difference.TYPE, describe(reference), describe(candidate))
        if isinstance(reference, float):
            same = struct.pack("<d", reference) == struct.pack("<d", candidate)
        else:
            same = bool(reference == candidate)
        return None if same else spot.finding(Difference.VALUES, reference, candidate)

    def _tensors(self, spot: Spot, reference: Tensor, candidate: Tensor, measured: Measured) -> Finding | None:
        if reference.dtype != candidate.dtype:
            return spot.finding(Difference.DTYPE, describe(reference), describe(candidate))
        if reference.shape != candidate.shape:
            return spot.finding(Difference.SHAPE, describe(reference), describe(candidate))
        bound = self.rule.bound(spot)
        storages = ((t.data_ptr(), tuple(t.shape), t.stride(), t.dtype) for t in (reference, candidate))
        key = (*storages, bound)
        if key not in measured:
            self.bytes += (size := reference.numel() * reference.element_size())
            same = stored_alike(reference, candidate) or same_bits(reference, candidate)
            measured[key] = None if same else measure(reference, candidate, *bound)
            advance(size)
        metrics = measured[key]
        if metrics and spot.rung == "validation" and reference.is_floating_point():
            metrics.row = typical_row(reference, candidate)
        return None if metrics is None else self._finding(spot, reference, metrics)

    def update(
        self, spot: Spot, reference: Tensor, candidate: Tensor, parameter: Metrics, source: float
    ) -> Finding | None:
        """The difference between two updates in float64.

        Args:
            parameter: how its values after the update differ: each update ends in a rounding of these.
            source: how far their gradients are apart, relative to the reference's.
        """
        if same_bits(reference, candidate):
            return None
        metrics = measure(reference, candidate, 0.0, 0.0)
        metrics.eps = parameter.eps * (parameter.norm or 0.0) / metrics.norm if metrics.norm else 0.0
        return self._finding(spot, reference, metrics, source)

    def _finding(self, spot: Spot, reference: Tensor, metrics: Metrics, source: float = 0.0) -> Finding:
        floating = reference.is_floating_point() or reference.is_complex()
        return spot.finding(
            Difference.VALUES,
            metrics.reference,
            metrics.candidate,
            judgement=self.rule.judge(spot, metrics, source) if floating else self.rule.judge_whole(spot, metrics),
            index=metrics.index,
            shape=tuple(reference.shape),
            dtype=str(reference.dtype).removeprefix("torch."),
            metrics=metrics,
        )


def absent(spot: Spot, reference: Any, candidate: Any) -> Finding:
    """What one side lacks: `ABSENT` there, whatever the other side has."""
    kind = Difference.MISSING_REFERENCE if reference is ABSENT else Difference.MISSING_CANDIDATE
    return spot.finding(kind, *("absent" if value is ABSENT else describe(value) for value in (reference, candidate)))


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a nested value by dotted path below `name`; an empty list or dict is a leaf too.

    Packages differ, the class need not: an object that was not kept counts by its unqualified class name.
    """
    if isinstance(value, dict) and value.keys() == {"__repr__"}:
        return {name: f"object of class {str(value['__repr__']).rsplit('.', 1)[-1]}"}
    if not isinstance(value, (dict, list, tuple)):
        return {name: value}
    if not value:
        return {name: f"empty {type(value).__name__}"}
    children = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, child in children:
        found |= flatten(child, f"{name}.{key}" if name else str(key))
    return found


def describe(value: Any) -> str:
    """What kind of thing a value is, for a reader: ``[2, 80, 304] float32``, ``None``, ``3``."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return repr(value) if isinstance(value, (bool, int, float, str)) or value is None else type(value).__name__
