"""Leaves: tensors by bits, everything else by type and value; what is on one side only is never a pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nest_ssl.compare.result import (
    DTYPE,
    MISSING_CANDIDATE,
    MISSING_REFERENCE,
    NONE,
    SHAPE,
    TYPE,
    VALUES,
    Place,
)
from nest_ssl.compare.tolerance import FixedTolerance
from nest_ssl.compare.values import Comparer, describe, flatten

PLACE = Place("forward", 0, "m", 0, "output")


@pytest.fixture
def comparer() -> Comparer:
    return Comparer(FixedTolerance(1e-5, 1e-5))


@pytest.mark.parametrize(
    ("reference", "candidate", "kind"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), DTYPE),
        (torch.zeros(2, 1), torch.zeros(1, 2), SHAPE),
        (torch.zeros(2), torch.ones(2), VALUES),
        (torch.zeros(2), None, NONE),
        (None, 0, NONE),
        (1, 1.0, TYPE),
        (1, True, TYPE),
        (torch.zeros(()), 0.0, TYPE),
        (0.0, -0.0, VALUES),
        ("a", "b", VALUES),
        (3, 4, VALUES),
    ],
)
def test_unlike_leaves_differ(comparer: Comparer, reference: Any, candidate: Any, kind: str) -> None:
    found = comparer.leaf(PLACE, reference, candidate)
    assert found is not None
    assert (found.kind, found.within) == (kind, False)


@pytest.mark.parametrize("value", [torch.ones(3), None, 1, True, 0.5, math.nan, "a", torch.tensor(math.nan)])
def test_like_leaves_do_not(comparer: Comparer, value: Any) -> None:
    other = value.clone() if isinstance(value, torch.Tensor) else value
    assert comparer.leaf(PLACE, value, other) is None


@pytest.mark.parametrize(("step", "within"), [(1e-6, True), (1e-3, False)])
def test_only_floats_can_be_within_the_tolerance(comparer: Comparer, step: float, within: bool) -> None:
    found = comparer.leaf(PLACE, torch.ones(3), torch.ones(3) + step)
    assert found is not None
    assert found.within is within


def test_integers_are_never_within() -> None:
    found = Comparer(FixedTolerance(10.0, 10.0)).leaf(PLACE, torch.tensor([1]), torch.tensor([2]))
    assert found is not None
    assert not found.within


def test_nested_values_are_named_by_path(comparer: Comparer) -> None:
    found = comparer.nested(PLACE, [torch.zeros(1), {"a": 1}], [torch.zeros(1), {"a": 2}])
    assert [difference.place.tensor for difference in found] == ["output.1.a"]


def test_one_sided_paths_are_missing(comparer: Comparer) -> None:
    found = comparer.nested(PLACE, {"a": 1, "b": 2}, {"b": 2, "c": 3})
    assert [(d.place.tensor, d.kind) for d in found] == [
        ("output.a", MISSING_CANDIDATE),
        ("output.c", MISSING_REFERENCE),
    ]


def test_an_empty_list_is_not_nothing(comparer: Comparer) -> None:
    assert comparer.nested(PLACE, [torch.zeros(1), []], [torch.zeros(1)])
    assert not comparer.nested(PLACE, [torch.zeros(1), []], [torch.zeros(1), []])


def test_objects_that_were_not_kept_count_by_their_class_name(comparer: Comparer) -> None:
    nemo, nest, other = ({"__repr__": name} for name in ("nemo.core.Cache", "nest_ssl.model.Cache", "nemo.core.Type"))
    assert not comparer.nested(PLACE, nemo, nest)
    assert comparer.nested(PLACE, nemo, other)


def test_a_tensor_stored_once_is_compared_once(comparer: Comparer) -> None:
    a, b = torch.zeros(100), torch.zeros(100)
    for _ in range(3):
        assert comparer.leaf(PLACE, a, b) is None
    assert (comparer.tensors, comparer.tensors_same, comparer.bytes) == (3, 3, 400)


def test_what_is_remembered_is_forgotten_with_the_file(comparer: Comparer) -> None:
    a, b = torch.zeros(3), torch.zeros(3)
    comparer.leaf(PLACE, a, b)
    b[0] = 1
    comparer.forget()
    assert comparer.leaf(PLACE, a, b) is not None


def test_views_of_one_storage_are_not_confused(comparer: Comparer) -> None:
    a, b = torch.arange(6.0), torch.arange(6.0)
    b[5] = 0
    assert comparer.leaf(PLACE, a[:3], b[:3]) is None
    assert comparer.leaf(PLACE, a, b) is not None


def test_flatten_and_describe() -> None:
    assert flatten({"a": [1, {"b": None}]}, "x") == {"x.a.0": 1, "x.a.1.b": None}
    assert describe(torch.zeros(2, 3)) == "[2, 3] float32"
    assert describe(None) == "None"
