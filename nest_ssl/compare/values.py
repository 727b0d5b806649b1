"""Compares values leaf by leaf: tensors by their bits, everything else by type and value."""

from __future__ import annotations

import struct
from typing import Any

from torch import Tensor

from nest_ssl.compare.bits import same_bits
from nest_ssl.compare.metrics import Metrics, measure
from nest_ssl.compare.result import (
    DTYPE,
    MISSING_CANDIDATE,
    MISSING_REFERENCE,
    NONE,
    SHAPE,
    TYPE,
    VALUES,
    Difference,
    Place,
)
from nest_ssl.compare.tolerance import Tolerance

_UNSTORED = "__repr__"  # how the recorder marks an object that it could not keep


class Comparer:
    """Compares leaves under one tolerance, and counts the tensors it has seen.

    The recorder stores a tensor that passes from module to module once, so results are remembered by storage: call
    `forget` before the tensors of another file are compared.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.tensors = 0
        self.tensors_same = 0
        self.bytes = 0
        self._known: dict[tuple[Any, ...], Metrics | None] = {}  # None: the same bits

    def forget(self) -> None:
        self._known.clear()

    def leaf(self, place: Place, reference: Any, candidate: Any) -> Difference | None:
        """The difference between two leaves, or None where they are the same."""
        if isinstance(reference, Tensor) and isinstance(candidate, Tensor):
            self.tensors += 1
            difference = self._tensors(place, reference, candidate)
            self.tensors_same += difference is None
            return difference
        if reference is None and candidate is None:
            return None
        if reference is None or candidate is None:
            return Difference(place, NONE, describe(reference), describe(candidate))
        if type(reference) is not type(candidate):
            return Difference(place, TYPE, describe(reference), describe(candidate))
        return None if _same_plain(reference, candidate) else Difference(place, VALUES, reference, candidate)

    def nested(self, place: Place, reference: Any, candidate: Any) -> list[Difference]:
        """Differences between two nested values, in the reference's order; `place.tensor` is the name of the whole."""
        ours, theirs = flatten(reference, place.tensor or ""), flatten(candidate, place.tensor or "")
        found = []
        for path in dict.fromkeys([*ours, *theirs]):
            here = at(place, path)
            if path not in theirs:
                found.append(Difference(here, MISSING_CANDIDATE, describe(ours[path]), "absent"))
            elif path not in ours:
                found.append(Difference(here, MISSING_REFERENCE, "absent", describe(theirs[path])))
            else:
                found.append(self.leaf(here, ours[path], theirs[path]))
        return [difference for difference in found if difference]

    def _tensors(self, place: Place, reference: Tensor, candidate: Tensor) -> Difference | None:
        dtypes = [str(t.dtype).removeprefix("torch.") for t in (reference, candidate)]
        if dtypes[0] != dtypes[1]:
            return Difference(place, DTYPE, describe(reference), describe(candidate))
        if reference.shape != candidate.shape:
            return Difference(place, SHAPE, describe(reference), describe(candidate))
        metrics = self._measure(place, reference, candidate)
        if metrics is None:
            return None
        floating = reference.is_floating_point() or reference.is_complex()
        within = floating and self.tolerance.accepts(place, metrics)
        values = {"reference": metrics.reference, "candidate": metrics.candidate, "index": metrics.index}
        return Difference(
            place, VALUES, **values, within=within, shape=tuple(reference.shape), dtype=dtypes[0], metrics=metrics
        )

    def _measure(self, place: Place, reference: Tensor, candidate: Tensor) -> Metrics | None:
        bound = self.tolerance.bound(place)
        key = (*(_storage(tensor) for tensor in (reference, candidate)), bound)
        if key not in self._known:
            self.bytes += reference.numel() * reference.element_size()
            same = same_bits(reference, candidate)
            self._known[key] = None if same else measure(reference, candidate, *bound)
        return self._known[key]


def flatten(value: Any, name: str) -> dict[str, Any]:
    """The leaves of a nested value by dotted path below `name`; an empty list or dict is a leaf too."""
    if isinstance(value, dict) and value.keys() == {_UNSTORED}:
        # Packages differ, the class need not: an object that was not kept counts by its unqualified class name.
        return {name: f"object of class {str(value[_UNSTORED]).rsplit('.', 1)[-1]}"}
    if isinstance(value, dict) and value:
        children = list(value.items())
    elif isinstance(value, (list, tuple)) and value:
        children = list(enumerate(value))
    else:
        return {name: value if not isinstance(value, (dict, list, tuple)) else f"empty {type(value).__name__}"}
    found: dict[str, Any] = {}
    for key, child in children:
        found |= flatten(child, f"{name}.{key}" if name else str(key))
    return found


def at(place: Place, tensor: str) -> Place:
    return Place(place.rung, place.step, place.module, place.call, tensor, place.rank)


def describe(value: Any) -> str:
    """What kind of thing a value is, for a reader: ``[2, 80, 304] float32``, ``None``, ``3``."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value)
    return type(value).__name__


def _storage(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _same_plain(reference: Any, candidate: Any) -> bool:
    if isinstance(reference, float):
        return struct.pack("<d", reference) == struct.pack("<d", candidate)
    return reference == candidate
