"""Matching the draws of two ledgers: chains of states, joined, divided, shifted and parted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.compare.findings import Difference, Draw, Stage
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rungs.draws import compare_ledgers
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.values import Comparer
from nest_ssl.recording.index import DrawEntry

Drawn = Sequence[tuple[str, int]]


def ledger_of(drawn: Drawn, start: int = 0) -> list[DrawEntry]:
    """A ledger of one generator whose state is the count of numbers drawn."""
    entries = []
    for event, (name, draws) in enumerate(drawn):
        module, _, call = name.partition("#")
        stage = {"phase": "forward", "module": module, "call": int(call)}
        ends = {"before": f"{start:016x}", "after": f"{start + draws:016x}"}
        entries.append(DrawEntry(**stage, **ends, event=event, generator="g", draws=draws))  # type: ignore[arg-type]
        start += draws
    return entries


def match(reference: Drawn, candidate: Drawn, start: int = 0) -> list[tuple[str, tuple[int | None, int | None], str]]:
    """(stage, draws, fate) of each pair."""
    return [(name_of(d.stage), d.draws, d.fate) for d in match_draws(reference, candidate, start)]


def match_draws(reference: Drawn, candidate: Drawn, start: int = 0) -> list[Draw]:
    return compare(ledger_of(reference), ledger_of(candidate, start))


def compare(reference: list[DrawEntry], candidate: list[DrawEntry]) -> list[Draw]:
    return compare_ledgers(Sheet("draws", Comparer(SameBits()), 0), reference, candidate)


def name_of(stage: Stage) -> str:
    return f"{stage.module}#{stage.call}"


A, B, C = ("a#0", 4), ("b#0", 6), ("c#0", 5)


def test_the_same() -> None:
    assert [fate for *_, fate in match([A, B, C], [A, B, C])] == ["same"] * 3


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_one_extra_draw_anywhere(at: int) -> None:
    drawn = [A, B, C]
    found = match(drawn, [*drawn[:at], ("x#0", 1), *drawn[at:]])
    assert ("x#0", (0, 1), "on one side") in found
    assert [fate for stage, _, fate in found if stage != "x#0"] == ["same"] * at + ["came in"] * (3 - at)


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
    assert [fate for *_, fate in match([A, B], [A, B], start=100)] == ["came in"] * 2
    assert all(draw.came_in for draw in match_draws([A, B], [A, B], start=100))


@pytest.mark.parametrize(
    "candidate",
    [
        [("a.inner#0", 4), B, C],  # one call deeper
        [("p#0", 10), C],  # in one go, one call up
        [("p#0", 15)],
        [("a#0", 1), ("a#0", 3), B, C],  # in two goes
        [("a#0", 4), ("p#0", 11)],
        [("p#0", 2), ("q#0", 8), C],
    ],
)
def test_the_same_numbers_divided_otherwise(candidate: Drawn) -> None:
    for found in (match_draws([A, B, C], candidate), match_draws(candidate, [A, B, C])):
        assert all(draw.finding is None for draw in found)


def test_stages_that_cannot_be_matched_stand_together() -> None:
    found = match_draws([A, B, C], [("x#0", 1), ("p#0", 10), C])
    stages = [tuple(tuple(map(name_of, side)) for side in (d.reference, d.candidate)) for d in found]
    assert stages == [(("a#0", "b#0"), ("x#0", "p#0")), (("c#0",), ("c#0",))]
    assert [(d.draws, d.fate) for d in found] == [((10, 11), "other count"), ((5, 5), "came in")]


def test_draws_that_were_not_counted() -> None:
    reference, candidate = ledger_of([A, B]), ledger_of([A, B])
    for side in (reference, candidate):
        side[0] = side[0].model_copy(update={"draws": None})
    assert [d.fate for d in compare(reference, candidate)] == ["same"] * 2
    candidate[0] = candidate[0].model_copy(update={"after": "f" * 16})
    found = compare(reference, candidate)[0]
    assert (found.fate, found.draws) == ("left otherwise", (None, None))
    assert found.finding is not None
    assert (found.finding.difference, found.finding.candidate) == (Difference.STATE, "f" * 16)


STAGES = st.lists(st.tuples(st.sampled_from(["a#0", "b#0", "c#0", "d#1"]), st.integers(1, 9)), min_size=1, max_size=8)


@given(STAGES, STAGES)
def test_two_ledgers_agree_only_if_they_drew_as_many(reference: Drawn, candidate: Drawn) -> None:
    totals = [sum(draws for _, draws in side) for side in (reference, candidate)]
    differing = [draw for draw in match_draws(reference, candidate) if draw.finding]
    if totals[0] != totals[1]:
        assert differing
    found = match_draws(reference, candidate)
    for side, total in enumerate(totals):
        assert sum(draw.draws[side] or 0 for draw in found) == total, "every draw stands in exactly one pair"


@given(STAGES, st.data())
def test_joining_neighbreference_is_never_a_difference(reference: Drawn, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(reference) - 1))
    end = data.draw(st.integers(cut + 1, len(reference)))
    joined = [*reference[:cut], ("parent#0", sum(draws for _, draws in reference[cut:end])), *reference[end:]]
    assert not [draw for draw in match_draws(reference, joined) if draw.finding]
