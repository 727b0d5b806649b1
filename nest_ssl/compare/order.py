"""Puts differences of several rungs into causal order: what may have caused what comes first.

Random draws go between the other rungs: those made while the batch was fetched before the batch, those of a call before
its output and after its inputs, those of the backward before the gradients, those of the optimizer before its weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nest_ssl.compare.calls import ForwardResult
from nest_ssl.compare.draws import BEFORE_MODEL, FORWARD, moment_of, phase_of
from nest_ssl.compare.localise import StepResult, differing_events
from nest_ssl.compare.result import Difference, Tally
from nest_ssl.recording.stages import BACKWARD, FETCH, OPTIMIZER_STEP, VALIDATION

STEP_RUNGS = ("batch", "draws", "forward", "loss", "gradients", "weights")

# What a step's rungs and its draws, phase by phase, wait for. A boundary's states come last of what they close.
_STEP = (
    VALIDATION, FETCH, "batch", "batch_ready",
    FORWARD, "forward_done", "loss",
    BACKWARD, "gradients", "backward_done",
    OPTIMIZER_STEP, "weights", "step_done",
)  # fmt: skip
# The rung that a phase's draws belong to, in the sense that what differs in it may lead to other draws.
_RUNG_OF = {
    VALIDATION: "batch", FETCH: "batch", "batch_ready": "batch",
    FORWARD: "forward", "forward_done": "forward",
    BACKWARD: "gradients", "backward_done": "gradients",
    OPTIMIZER_STEP: "weights", "step_done": "weights",
}  # fmt: skip


def all_in_order(run: Mapping[str, Tally], results: Sequence[StepResult]) -> list[Difference]:
    """Every difference. A module of another class is no other number yet, so it stands where that module is called."""
    before, steps = before_the_steps(run), [within_step(result) for result in results]
    forward = results[0].forward if results else None
    classes = [d for d in before if _is_class(d) and forward and (d.place.module or "", 0) in forward.calls]
    if not forward or not classes:
        return before + [difference for step in steps for difference in step]
    steps[0] = within_step(results[0], classes)
    return [d for d in before if d not in classes] + [difference for step in steps for difference in step]


def _is_class(difference: Difference) -> bool:
    return (difference.place.rung, difference.place.tensor) == ("structure", "class")


def before_the_steps(tallies: Mapping[str, Tally]) -> list[Difference]:
    """Contract, structure, the state that building starts from, initial weights, then the draws made for them."""
    draws = tallies["draws"].differences
    early = [difference for difference in draws if moment_of(difference) == BEFORE_MODEL]
    late = [difference for difference in draws if moment_of(difference) != BEFORE_MODEL]
    first = [d for name in ("contract", "structure") for d in tallies[name].differences]
    return [*first, *early, *tallies["initial_weights"].differences, *late]


def within_step(result: StepResult, classes: Sequence[Difference] = ()) -> list[Difference]:
    """All differences of one step, and modules of other `classes` where they are first called."""
    place = {name: position for position, name in enumerate(_STEP)}
    events = {id(draw.difference): draw.event for draw in result.draws}
    keyed: list[tuple[tuple[float, float, bool], Difference]] = []
    for difference in classes:
        assert result.forward is not None
        keyed.append(
            ((place[FORWARD], result.forward.calls[difference.place.module or "", 0].start, False), difference)
        )
    for name in STEP_RUNGS:
        for difference in result.tallies[name].differences:
            if name == "forward":
                key = (place[FORWARD], _event(difference, result.forward), True)
            elif name == "draws":
                key = (place[phase(difference)], events.get(id(difference), math.inf), False)
            else:
                key = (place[name], 0, True)
            keyed.append((key, difference))
    return [difference for _, difference in sorted(keyed, key=lambda pair: pair[0])]


def phase(difference: Difference) -> str:
    """Where among the rungs of a step a difference of random draws belongs; a boundary's name for its states."""
    if moment := moment_of(difference):
        return moment
    stage = (difference.place.tensor or "").rpartition(".")[0]
    return phase_of(stage) if difference.place.module is None else FORWARD


def explained_draw(draw: Difference, first: Difference, result: StepResult) -> bool:
    """Whether `first`, at the same step, may have led to other draws: it is in the same rung, and where a call drew,
    something differs in that call before it."""
    where = phase(draw)
    if _RUNG_OF[where] != first.place.rung:
        return False
    call = result.forward.calls.get((draw.place.module or "", draw.place.call or 0)) if result.forward else None
    if where != FORWARD or draw.place.module is None or result.forward is None or call is None:
        return True
    until = next((drawn.event for drawn in result.draws if drawn.difference is draw), math.inf)
    return any(call.start <= position < until for position, _, _ in differing_events(result.forward))


def in_order(first: Difference, run: Mapping[str, Tally], results: Sequence[StepResult]) -> list[Tally]:
    """Every tally in causal order, the draws where the headline is one, or else just after the headline."""
    start = [name for name in run if name != "draws"]
    if "draws" in run:
        start.insert(start.index("initial_weights") + (moment_of(first) != BEFORE_MODEL), "draws")
    rungs = _rung_order(first)
    return [*(run[name] for name in start), *(result.tallies[name] for result in results for name in rungs)]


def _rung_order(first: Difference) -> list[str]:
    others = [name for name in STEP_RUNGS if name != "draws"]
    if first.place.rung == "draws":
        at = phase(first)
        before = [name for name in others if at in _STEP and name in _STEP[: _STEP.index(at)]]
    else:
        before = others[: others.index(first.place.rung) + 1] if first.place.rung in others else []
    return [*before, "draws", *others[len(before) :]]


def _event(difference: Difference, forward: ForwardResult | None) -> float:
    """The event of the reference's calls at which a difference of the forward shows."""
    place = difference.place
    call = forward.calls.get((place.module or "", place.call)) if forward and place.call is not None else None
    if call is None:
        return math.inf
    return call.end if (place.tensor or "").startswith("output") else call.start
