"""Matching the draws of two ledgers: chains of states, joined, divided, shifted and parted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.compare.draws import Clock, compare_ledgers
from nest_ssl.compare.result import Draw, Tally
from nest_ssl.compare.tell import tell

Drawn = Sequence[tuple[str, int]]


def ledger_of(drawn: Drawn, start: int = 0) -> list[dict[str, Any]]:
    """A ledger of one generator whose state is the count of numbers drawn."""
    entries = []
    for event, (stage, draws) in enumerate(drawn):
        ends = {"before": str(start), "after": str(start + draws)}
        entries.append({"stage": stage, "event": event, "generator": "g", "draws": draws, **ends})
        start += draws
    return entries


def match(ours: Drawn, theirs: Drawn, start: int = 0) -> list[tuple[str, tuple[int | None, int | None], str]]:
    """(stage, draws, relation) of each pair."""
    return [(d.stage, d.draws, d.relation) for d in match_draws(ours, theirs, start)]


def match_draws(ours: Drawn, theirs: Drawn, start: int = 0) -> list[Draw]:
    return compare_ledgers(Tally("draws", 0), ledger_of(ours), ledger_of(theirs, start), Clock([], []))


A, B, C = ("a#0", 4), ("b#0", 6), ("c#0", 5)


def test_the_same() -> None:
    assert [relation for *_, relation in match([A, B, C], [A, B, C])] == ["same"] * 3


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_one_extra_draw_anywhere(at: int) -> None:
    drawn = [A, B, C]
    found = match(drawn, [*drawn[:at], ("x#0", 1), *drawn[at:]])
    assert ("x#0", (0, 1), "on one side") in found
    assert [relation for stage, _, relation in found if stage != "x#0"] == ["same"] * at + ["came in"] * (3 - at)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_one_draw_lacking(at: int) -> None:
    drawn = [A, B, C]
    found = match(drawn, drawn[:at] + drawn[at + 1 :])
    assert (drawn[at][0], (drawn[at][1], 0), "on one side") in found
    assert [r for s, _, r in found if s != drawn[at][0]] == ["same"] * at + ["came in"] * (2 - at)


def test_another_count() -> None:
    assert match([A, B, C], [A, ("b#0", 7), C]) == [
        ("a#0", (4, 4), "same"), ("b#0", (6, 7), "other count"), ("c#0", (5, 5), "came in"),
    ]  # fmt: skip


def test_counts_that_make_up_for_each_other_are_still_a_difference() -> None:
    found = match([A, B, C], [("a#0", 6), ("b#0", 4), C])
    assert found == [("a#0", (4, 6), "other count"), ("b#0", (6, 4), "other count"), ("c#0", (5, 5), "same")]


def test_another_state_to_start_from_comes_in() -> None:
    assert [relation for *_, relation in match([A, B], [A, B], start=100)] == ["came in"] * 2
    assert all(draw.came_in for draw in match_draws([A, B], [A, B], start=100))


@pytest.mark.parametrize(
    "theirs",
    [
        [("a.inner#0", 4), B, C],  # one call deeper
        [("p#0", 10), C],  # in one go, one call up
        [("p#0", 15)],
        [("a#0", 1), ("a#0", 3), B, C],  # in two goes
        [("a#0", 4), ("p#0", 11)],
        [("p#0", 2), ("q#0", 8), C],
    ],
)
def test_the_same_numbers_divided_otherwise(theirs: Drawn) -> None:
    for found in (match_draws([A, B, C], theirs), match_draws(theirs, [A, B, C])):
        assert all(draw.difference is None for draw in found)


def test_stages_that_nobody_can_match_are_told_together() -> None:
    found = match_draws([A, B, C], [("x#0", 1), ("p#0", 10), C])
    assert [(d.reference, d.candidate, d.draws, d.relation) for d in found] == [
        (("a#0", "b#0"), ("x#0", "p#0"), (10, 11), "other count"), (("c#0",), ("c#0",), (5, 5), "came in"),
    ]  # fmt: skip
    assert tell(found[0], found) == "`a` to `b` drew 10 numbers from g, the candidate 11, in `x` to `p`."


def test_draws_that_nobody_counted() -> None:
    ours, theirs = ledger_of([A, B]), ledger_of([A, B])
    for side in (ours, theirs):
        side[0]["draws"] = None
    assert [d.relation for d in compare_ledgers(Tally("draws", 0), ours, theirs, Clock([], []))] == ["same"] * 2
    theirs[0]["after"] = "elsewhere"
    found = compare_ledgers(Tally("draws", 0), ours, theirs, Clock([], []))[0]
    assert (found.relation, found.draws) == ("left otherwise", (None, None))
    assert found.difference is not None
    assert (found.difference.kind, found.difference.candidate) == ("state", "elsewhere")


STAGES = st.lists(st.tuples(st.sampled_from(["a#0", "b#0", "c#0", "d#1"]), st.integers(1, 9)), min_size=1, max_size=8)


@given(STAGES, STAGES)
def test_two_ledgers_agree_only_if_they_drew_as_many(ours: Drawn, theirs: Drawn) -> None:
    totals = [sum(draws for _, draws in side) for side in (ours, theirs)]
    differing = [draw for draw in match_draws(ours, theirs) if draw.difference]
    if totals[0] != totals[1]:
        assert differing
    found = match_draws(ours, theirs)
    for side, total in enumerate(totals):
        assert sum(draw.draws[side] or 0 for draw in found) == total, "every draw stands in exactly one pair"


@given(STAGES, st.data())
def test_joining_neighbours_is_never_a_difference(ours: Drawn, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(ours) - 1))
    end = data.draw(st.integers(cut + 1, len(ours)))
    joined = [*ours[:cut], ("parent#0", sum(draws for _, draws in ours[cut:end])), *ours[end:]]
    assert not [draw for draw in match_draws(ours, joined) if draw.difference]
