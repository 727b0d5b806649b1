"""What was not replayed and could carry the difference counts, unless float64 says the same of just that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nest_ssl.compare.born import born_of
from nest_ssl.compare.causes import StepFindings, unexplained
from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import STEP_RUNGS, CallJudgement, Difference, Finding, Relation, RungName, Tally
from nest_ssl.compare.gaps import Gap, Part, gaps
from nest_ssl.compare.metrics import Metrics
from nest_ssl.compare.roots import Root
from nest_ssl.compare.rules.same_function import By, Function, SameFunctionRule, UnitJudgement
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Moment, Phase
from nest_ssl.recording.evidence import Unit
from tests.compare.evidence import apart, output, unit

AT: dict[str, tuple[RungName, Kind, Phase]] = {
    "batch": ("batch", Kind.FIELD, Phase.BATCH),
    "loss": ("loss", Kind.LOSS, Phase.LOSS),
    "clipping": ("weights", Kind.UPDATE, Phase.AFTER_STEP),
    "optimizer": ("weights", Kind.OPTIMIZER_STATE, Phase.AFTER_STEP),
}
BOTH = [("clipping", None), ("optimizer", None)]


def differs(rung: RungName, kind: Kind, phase: Phase, module: str | None = None, call: int | None = None) -> Finding:
    return Finding(rung, Moment(0, phase), Address(kind, module, call), Difference.VALUES)


def step(*findings: Finding, calls: tuple[tuple[str, int], ...] = (), rank: int = 0, **fields: Any) -> StepFindings:
    """A step at which these differ, and the outputs of these calls."""
    made = StepFindings(0, rank, {rung: Tally(rung, 0, rank) for rung in STEP_RUNGS}, **fields)
    for one in findings:
        made.tallies[one.rung].findings.append(one)
    worst = differs("forward", Kind.OUTPUT, Phase.FORWARD)
    made.calls = [CallJudgement(0, *key, Relation.CAME_IN, order, worst) for order, key in enumerate(calls)]
    return made


def left(made: StepFindings, *units: Unit, covers: set[Part] | None = None, updated: bool = True) -> list[Gap]:
    rule = SameFunctionRule(Evidence())
    return gaps([made], [rule.judge(one) for one in units], covers or set(), {0: updated})


def names(found: list[Gap]) -> list[tuple[str, str | None]]:
    return [(gap.phase, gap.module) for gap in found]


def lost(module: str | None, phase: str, why: str = "no", **fields: Any) -> Unit:
    return unit(module, phase, outcome="not replayed", compared=0, why=why, **fields)


@pytest.mark.parametrize("phase", AT)
def test_what_is_no_modules_counts_as_well(phase: str) -> None:
    made, rung = step(differs(*AT[phase])), AT[phase][0]
    passed = BOTH if rung == "weights" else [(phase, None)]
    replayed = [unit(None, one) for one, _ in passed if one != phase]
    (gap,) = left(made, *replayed, lost(None, phase, "its generator was lost"))
    assert (gap.phase, gap.why) == (phase, "its generator was lost")
    assert names(left(made, *replayed)) == [(phase, None)]  # it is in no replay
    assert left(made, *replayed, unit(None, phase)) == []
    assert left(step(), lost(None, phase)) == []  # nothing differs there


@pytest.mark.parametrize(("covers", "expected"), [("weights", []), ("gradients", BOTH), ("forward", BOTH)])
def test_float64_covers_what_ran_in_it_and_no_more(covers: RungName, expected: list[tuple[str, None]]) -> None:
    made = step(differs(*AT["optimizer"]))
    assert names(left(made, covers={(0, 0, covers)})) == expected
    assert names(left(made, covers={(1, 0, covers), (0, 1, covers)})) == BOTH  # of another step, of another rank


def test_of_the_loss_the_gradients_count_as_well() -> None:
    made = step(differs(*AT["loss"]))
    assert names(left(made, covers={(0, 0, "loss")})) == [("loss", None)]
    assert left(made, covers={(0, 0, "loss"), (0, 0, "gradients")}) == []


def test_a_step_that_was_never_replayed_counts_whole() -> None:
    arrived = differs("gradients", Kind.OUTPUT_GRADIENT, Phase.GRADIENTS, "a", 0)
    made = step(differs(*AT["batch"]), arrived, differs(*AT["optimizer"]), calls=(("a", 0),))
    found = left(made, lost(None, "forward", "the weights at its start were not recorded"))
    assert names(found) == [("batch", None), ("forward", "a"), ("loss", None), ("backward", "a"), *BOTH]
    assert {gap.why for gap in found} == {"the weights at its start were not recorded"}


def test_each_call_and_each_rank_counts() -> None:
    made = step(calls=(("a", 0), ("a", 1)))
    assert [gap.call for gap in left(made, unit("a"), lost("a", "forward", call=1))] == [1]
    assert [gap.call for gap in left(made, unit("a"))] == [1]
    (gap,) = left(step(calls=(("a", 0),), rank=1), unit("a"))
    assert gap.why == "only the first rank is replayed"


def test_a_batch_without_an_update_needs_no_optimizer() -> None:
    made = step(differs(*AT["optimizer"]))
    assert left(made, lost(None, "optimizer"), updated=False) == []


def test_what_is_judged_with_the_call_around_it_is_as_sure_as_that() -> None:
    made = step(differs("gradients", Kind.OUTPUT_GRADIENT, Phase.GRADIENTS, "a.dropout", 0))
    inner, loss = lost("a.dropout", "backward", judged_with="a#0"), unit(None, "loss")
    assert left(made, loss, inner, unit("a", "backward")) == []
    wrong = unit("a", "backward", outcome="other bits", deviations=[apart(output("a"), 1.0)])
    assert left(made, loss, inner, wrong) == []  # that is named for itself
    assert names(left(made, loss, inner, lost("a", "backward"))) == [("backward", "a.dropout")]
    assert names(left(made, loss, inner)) == [("backward", "a.dropout")]


def test_same_bits_of_nothing_are_no_evidence() -> None:
    made = step(calls=(("a", 0),))
    assert names(left(made, unit("a", compared=0))) == [("forward", "a")]
    assert left(made, unit("a", compared=0, judged_with="b#0")) == []


# --- births


@pytest.mark.parametrize(("optimizer", "named"), [(Function.SAME, ["clipping"]), (None, ["clipping", "optimizer"])])
def test_an_optimizer_that_is_the_same_is_not_named_beside_clipping(
    optimizer: Function | None, named: list[str]
) -> None:
    update = Address(Kind.UPDATE, "decoder", None, "weight")
    found = Finding("weights", Moment(0, Phase.AFTER_STEP), update, Difference.VALUES)
    units = [UnitJudgement(unit(None, "clipping"), Function.ANOTHER, By.FLOOR)]
    units += [UnitJudgement(unit(None, "optimizer"), optimizer, By.BITS)] if optimizer else []
    born = born_of(units, [Root("optimizer", "decoder", (found,))], lambda _: False)
    assert [one.phase for one in born] == named


@pytest.mark.parametrize(
    ("size", "named"),
    [(1.0, ["optimizer"]), (0.5, ["optimizer"]), (1e-3, ["loss", "optimizer"]), (0.7, ["loss", "optimizer"])],
)
def test_shares_and_rates_follow_from_how_many_batches_are_added_up(size: float, named: list[str]) -> None:
    """The loss twice as large, or half, where one side alone makes an update with each batch; not by any factor."""
    alone = Finding("optimizer_input", Moment(0, Phase.OPTIMIZER_INPUT), Address(Kind.UPDATE), Difference.SETTING)
    loss = Address(Kind.LOSS, slot="loss")
    units = [
        UnitJudgement(
            unit(None, "loss", outcome="other bits", deviations=[apart(loss, size)]), Function.ANOTHER, By.FLOOR
        ),
        UnitJudgement(unit(None, "schedule", step=1, outcome="other bits"), Function.ANOTHER, By.FLOOR),
    ]
    born = born_of(units, [Root("optimizer", None, (alone,))], lambda _: False)
    assert [one.phase for one in born] == named
    assert [one.phase for one in born_of(units, [], lambda _: False)] == ["loss", "schedule"]


@pytest.mark.parametrize(("size", "place", "left_over"), [(0.25, 7, 0), (0.2501, 7, 0), (0.5, 7, 1), (0.25, 8, 1)])
def test_a_field_that_is_made_of_the_headlines_follows_from_it(size: float, place: int, left_over: int) -> None:
    """Noisy audio is audio and noise: it differs by as much, in the same place."""
    fields = [
        replace(differs(*AT["batch"]), index=(0, at), metrics=Metrics(64, 1, max_abs=by))
        for at, by in ((7, 0.25), (place, size))
    ]
    remainders = unexplained(fields[0], fields, [step(*fields)], None)
    assert sum(len(one.findings) for one in remainders) == left_over


@pytest.mark.parametrize("at", ["before", "elsewhere"])
def test_who_is_handed_other_gradients_than_its_hook_recorded_is_cleared(at: str) -> None:
    """A module behind it is another function, and brings other gradients to its output: those it makes follow."""
    gradient = differs("gradients", Kind.GRADIENT, Phase.GRADIENTS, "before")
    deviation = apart(Address(Kind.OUTPUT_GRADIENT, at, 0), 0.5)
    units = [
        UnitJudgement(unit("before", "backward"), Function.SAME, By.BITS),
        UnitJudgement(
            unit("inner", "backward", outcome="other bits", deviations=[deviation]), Function.ANOTHER, By.FLOAT64
        ),
    ]
    born = born_of(units, [Root("backward", "before", (gradient,))], lambda _: False)
    assert {one.module for one in born} == ({"inner"} if at == "before" else {"before", "inner"})


def test_an_output_gradient_that_one_side_alone_computes_is_of_who_asks_for_it() -> None:
    """Where the models are built otherwise, backward reaches further on one side; the module it reaches is cleared."""
    place = Address(Kind.OUTPUT_GRADIENT, "before", 0)
    gradient = Finding("gradients", Moment(0, Phase.BACKWARD), place, Difference.MISSING_CANDIDATE)
    built = Finding("structure", Moment(-1, Phase.STRUCTURE), Address(Kind.PARAMETER, "mask"), Difference.SETTING)
    units = [UnitJudgement(unit("before", "backward"), Function.SAME, By.BITS)]
    backward = Root("backward", "before", (gradient,))
    assert [one.phase for one in born_of(units, [Root("structure", "mask", (built,)), backward], lambda _: False)] == [
        "structure"
    ]
    assert [one.phase for one in born_of(units, [backward], lambda _: False)] == ["backward"]
