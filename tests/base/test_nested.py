"""Nested values: leaves in order, an outer join, and nothing endless."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nest_ssl.base.nested import ABSENT, DEEPEST, leaves, pairs, plain, tensors, to_builtins


def test_leaves_and_tensors() -> None:
    t = torch.ones(1)
    value = ("a", {"x": t, "y": [1, None]}, [], {})
    assert list(leaves(value)) == [("0", "a"), ("1.x", t), ("1.y.0", 1), ("1.y.1", None)]
    assert list(tensors(value)) == [("1.x", t)] and list(tensors(t)) == [("", t)]


def test_nesting_has_an_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested deeper"):
        list(leaves(endless))
    deep: Any = 1
    for _ in range(DEEPEST):
        deep = [deep]
    assert [leaf for _, leaf in leaves(deep)] == [1]
    with pytest.raises(ValueError, match="nested deeper"):
        list(leaves([deep]))


def test_pairs_are_an_outer_join_in_the_references_order() -> None:
    reference, candidate = {"b": 1, "a": None, "c": 3}, {"x": 0, "a": 2, "b": 1}
    assert list(pairs(reference, candidate)) == [
        ("b", 1, 1), ("a", None, 2), ("c", 3, ABSENT), ("x", ABSENT, 0)
    ]  # fmt: skip


def test_plain_resolves() -> None:
    cfg = OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": [1, "${b.c}"]}})
    assert plain(cfg) == {"a": 1, "b": {"c": 1, "d": [1, 1]}} and type(plain(cfg)["b"]) is dict
    assert plain((1, {2: "x"})) == [1, {"2": "x"}]


def test_builtins_hold_no_class_of_anybodys() -> None:
    class Odd:
        pass

    t = torch.ones(2)
    value = to_builtins({"x": (t, Odd()), 3: None}, torch.clone)
    assert value["x"][0] is not t and value["3"] is None
    assert value["x"][1] == {"__repr__": f"{__name__}.test_builtins_hold_no_class_of_anybodys.<locals>.Odd"}
