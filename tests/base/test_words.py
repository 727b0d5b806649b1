"""What every command line shares: did-you-mean, bad usage, the grammar of steps."""

from __future__ import annotations

from typing import Any

import pytest

from nest_ssl.base.arguments import Parser
from nest_ssl.base.errors import UserError
from nest_ssl.base.spelling import did_you_mean, nearest
from nest_ssl.base.steps import parse_steps


def test_the_nearest_word() -> None:
    assert nearest("sead", ["lr", "seed", "name"]) == "seed" and did_you_mean("sead", {"seed"}) == "Did you mean seed?"
    assert nearest("zzz", ["seed"]) is None and nearest("conv_dual_mode", ["d_model"]) is None
    assert did_you_mean("x", []) == "Leave it out." and did_you_mean("x", ["seed"], "Choose one.") == "Choose one."


def test_bad_usage_is_a_users_error() -> None:
    parser = Parser(prog="x.py")
    parser.add_argument("--out", type=int)
    for argv in (["--out", "a"], ["--ou", "1"], ["extra"]):
        with pytest.raises(UserError, match=r"bad usage.*See x\.py --help"):
            parser.parse_args(argv)


@pytest.mark.parametrize(
    ("value", "steps"),
    [("0", {0}), (0, {0}), ("0,1,2", {0, 1, 2}), ([0, 1], {0, 1}), ("[0, 1]", {0, 1}), ("0-3", {0, 1, 2, 3}),
     ("0, 5 - 6", {0, 5, 6}), ("all", None), ("ALL", None), ("none", set()), (None, set()), ("", set()),
     (["0-1", 7], {0, 1, 7})],
)  # fmt: skip
def test_steps(value: Any, steps: set[int] | None) -> None:
    assert parse_steps(value) == steps


@pytest.mark.parametrize(
    "value",
    ["0-", "-1", "3-1", "x", "0,,1", "1.5", 1.5, True, [0, None], "0-99999999999", "9" * 5000, "٣", {"a": 1}, -1],
)
def test_no_steps(value: Any) -> None:
    with pytest.raises(UserError, match="steps that cannot be read"):
        parse_steps(value)
