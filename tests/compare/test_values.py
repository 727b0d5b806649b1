"""Leaves: tensors by bits, everything else by type and value; what is on one side only is never a pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nest_ssl.compare import values
from nest_ssl.compare.findings import Difference, Spot
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rules.fixed import FixedTolerance
from nest_ssl.compare.values import Comparer, Measured, describe, flatten
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Moment, Phase
from nest_ssl.recording.tensors import mark_as_stored

SPOT = Spot("forward", Moment(0, Phase.FORWARD), Address(Kind.OUTPUT, "m", 0))


@pytest.fixture
def comparer() -> Comparer:
    return Comparer(FixedTolerance(1e-5, 1e-5))


@pytest.mark.parametrize(
    ("reference", "candidate", "kind"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), Difference.DTYPE),
        (torch.zeros(2, 1), torch.zeros(1, 2), Difference.SHAPE),
        (torch.zeros(2), torch.ones(2), Difference.VALUES),
        (torch.zeros(2), None, Difference.NONE),
        (None, 0, Difference.NONE),
        (1, 1.0, Difference.TYPE),
        (1, True, Difference.TYPE),
        (torch.zeros(()), 0.0, Difference.TYPE),
        (0.0, -0.0, Difference.VALUES),
        ("a", "b", Difference.VALUES),
        (3, 4, Difference.VALUES),
    ],
)
def test_unlike_leaves_differ(comparer: Comparer, reference: Any, candidate: Any, kind: Difference) -> None:
    found = comparer.leaf(SPOT, reference, candidate)
    assert found is not None
    assert (found.difference, found.within) == (kind, False)


@pytest.mark.parametrize("value", [torch.ones(3), None, 1, True, 0.5, math.nan, "a", torch.tensor(math.nan)])
def test_like_leaves_do_not(comparer: Comparer, value: Any) -> None:
    other = value.clone() if isinstance(value, torch.Tensor) else value
    assert comparer.leaf(SPOT, value, other) is None


@pytest.mark.parametrize(("step", "within"), [(1e-6, True), (1e-3, False)])
def test_only_floats_can_be_within_the_tolerance(comparer: Comparer, step: float, within: bool) -> None:
    found = comparer.leaf(SPOT, torch.ones(3), torch.ones(3) + step)
    assert found is not None
    assert found.within is within


def test_integers_are_never_within() -> None:
    found = Comparer(FixedTolerance(10.0, 10.0)).leaf(SPOT, torch.tensor([1]), torch.tensor([2]))
    assert found is not None
    assert not found.within


def test_nested_values_are_named_by_path(comparer: Comparer) -> None:
    found = comparer.nested(SPOT, [torch.zeros(1), {"a": 1}], [torch.zeros(1), {"a": 2}])
    assert [difference.address.own_name for difference in found] == ["output.1.a"]


def test_one_sided_paths_are_missing(comparer: Comparer) -> None:
    found = comparer.nested(SPOT, {"a": 1, "b": 2}, {"b": 2, "c": 3})
    assert [(d.address.own_name, d.difference) for d in found] == [
        ("output.a", Difference.MISSING_CANDIDATE),
        ("output.c", Difference.MISSING_REFERENCE),
    ]


def test_an_empty_list_is_not_nothing(comparer: Comparer) -> None:
    assert comparer.nested(SPOT, [torch.zeros(1), []], [torch.zeros(1)])
    assert not comparer.nested(SPOT, [torch.zeros(1), []], [torch.zeros(1), []])


def test_objects_that_were_not_kept_count_by_their_class_name(comparer: Comparer) -> None:
    nemo, nest, other = ({"__repr__": name} for name in ("nemo.core.Cache", "nest_ssl.model.Cache", "nemo.core.Type"))
    assert not comparer.nested(SPOT, nemo, nest)
    assert comparer.nested(SPOT, nemo, other)


def test_a_tensor_stored_once_is_compared_once(comparer: Comparer) -> None:
    a, b, measured = torch.zeros(100), torch.zeros(100), Measured()
    for _ in range(3):
        assert comparer.leaf(SPOT, a, b, measured) is None
    assert (comparer.tensors, comparer.tensors_same, comparer.bytes) == (3, 3, 400)


def test_what_files_of_the_same_bytes_hold_is_not_looked_at(
    comparer: Comparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[torch.Tensor] = []
    monkeypatch.setattr(values, "same_bits", lambda one, other: bool(looked.append(one)) or torch.equal(one, other))
    a, b, c = torch.zeros(3), torch.zeros(3), torch.ones(3)
    for tensor, content in ((a, "one"), (b, "one"), (c, "another")):
        mark_as_stored({"x": tensor}, content)
    assert comparer.leaf(SPOT, a, b) is None and not looked
    assert comparer.leaf(SPOT, a, c) is not None and len(looked) == 1
    assert (comparer.tensors, comparer.tensors_same, comparer.bytes) == (2, 1, 24), "it counts all the same"


def test_nothing_is_remembered_beyond_one_pair_of_files(comparer: Comparer) -> None:
    """The next file is mapped at the addresses of the one before it."""
    a, b = torch.zeros(3), torch.zeros(3)
    assert comparer.leaf(SPOT, a, b) is None
    b[0] = 1
    assert comparer.leaf(SPOT, a, b) is not None


def test_a_rule_answers_with_its_bound_and_how_far_from_it() -> None:
    found = Comparer(FixedTolerance(0.5, 0.25)).leaf(SPOT, torch.tensor([2.0, 0.0]), torch.tensor([2.5, 0.25]))
    assert found is not None and found.judgement is not None
    assert (found.judgement.within, found.judgement.rule, found.judgement.ratio) == (True, "fixed", 0.5)
    assert found.judgement.bound == {"atol": 0.5, "rtol": 0.25}


def test_the_rule_of_bits_allows_nothing() -> None:
    found = Comparer(SameBits()).leaf(SPOT, torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))
    assert found is not None and found.judgement is not None
    assert (found.within, found.judgement.ratio) == (False, None)
    assert Comparer(SameBits()).leaf(SPOT, torch.ones(1), torch.ones(1)) is None


def test_views_of_one_storage_are_not_confused(comparer: Comparer) -> None:
    a, b, measured = torch.arange(6.0), torch.arange(6.0), Measured()
    b[5] = 0
    assert comparer.leaf(SPOT, a[:3], b[:3], measured) is None
    assert comparer.leaf(SPOT, a, b, measured) is not None


def test_flatten_and_describe() -> None:
    assert flatten({"a": [1, {"b": None}]}, "x") == {"x.a.0": 1, "x.a.1.b": None}
    assert describe(torch.zeros(2, 3)) == "[2, 3] float32"
    assert describe(None) == "None"
