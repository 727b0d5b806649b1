"""Where a difference was born: what is known, from the order of events, of how it came about."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from nest_ssl.compare.backward import BackwardResult
from nest_ssl.compare.calls import END, START, CallResult, ForwardResult, Key
from nest_ssl.compare.draws import FORWARD, phase_of
from nest_ssl.compare.result import (
    BORN,
    CAME_IN,
    INSIDE,
    NUMBERS,
    STOPPED,
    UNKNOWN,
    WEIGHTS,
    CallJudgement,
    Difference,
    Draw,
    Tally,
)
from nest_ssl.compare.tell import tell, tell_state
from nest_ssl.recording.stages import FETCH


@dataclass(slots=True)
class StepResult:
    """Everything found at one step of one rank."""

    step: int
    rank: int
    tallies: dict[str, Tally]
    forward: ForwardResult | None = None
    backward: BackwardResult = field(default_factory=BackwardResult)
    judgements: list[CallJudgement] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)

    def differing_draws(self) -> set[str]:
        """Stages whose random draws are not the same on both sides."""
        return {stage for draw in self.draws if draw.difference for stage in (*draw.reference, *draw.candidate)}


def judge_calls(result: StepResult, changed: set[str | None] | None) -> list[CallJudgement]:
    """Every call that is not the same on both sides, in execution order, with how it came to differ.

    Args:
        changed: modules whose own parameters or buffers differed before this step; None if that is not known.
    """
    forward = result.forward
    assert forward is not None
    events = differing_events(forward)
    positions = [position for position, _, _ in events]
    drawn = result.differing_draws()
    found = []
    for call in forward.calls.values():
        if not (call.inputs or call.outputs) or call.lacking:
            continue
        inside = bisect_right(positions, call.start)
        first = events[inside] if inside < len(events) and positions[inside] < call.end else None
        relation = _relation(call, first, forward)
        if relation == BORN and f"{call.module}#{call.call}" in drawn:
            relation = NUMBERS
        elif relation == BORN:
            relation = UNKNOWN if changed is None else WEIGHTS if call.module in changed else BORN
        worst = max(call.outputs or call.inputs, key=_size)
        found.append(CallJudgement(result.step, call.module, call.call, relation, call.order, worst, result.rank))
    return found


def differing_events(forward: ForwardResult) -> list[tuple[int, int, Key]]:
    """Starts with other inputs and ends with other outputs, as (position, START or END, call), in order."""
    events = []
    for call in forward.calls.values():
        events += [(call.start, START, call.key)] if call.inputs or call.lacking else []
        events += [(call.end, END, call.key)] if call.outputs else []
    return sorted(events)


def _relation(call: CallResult, first_inside: tuple[int, int, Key] | None, forward: ForwardResult) -> str:
    if not call.outputs:
        return STOPPED
    if call.inputs:
        return CAME_IN
    if first_inside is None:
        return BORN
    _, event, key = first_inside
    own_code = event == START and forward.calls[key].parent == call.key and not forward.calls[key].lacking
    return BORN if own_code else INSIDE


def _size(difference: Difference) -> tuple[int, float]:
    metrics = difference.metrics
    if metrics is None or metrics.nonfinite_disagree:
        return 1, 0.0
    return 0, float(metrics.max_abs or 0.0)


# --- one sentence on the headline -------------------------------------------------------------------------------------


def birthplace(first: Difference, result: StepResult | None) -> str | None:
    """The module in whose own code the headline was born, as far as the order of events tells."""
    place = first.place
    if place.rung != "forward" or result is None or result.forward is None or place.call is None:
        return place.module
    call = result.forward.calls.get((place.module or "", place.call))
    if call is not None and call.inputs and (place.tensor or "").startswith("inputs"):
        return call.parent[0] if call.parent else None
    return place.module


def origin(first: Difference, result: StepResult | None, before_fit: list[Draw]) -> str:
    """What is known of how the headline arose: one or two sentences; `before_fit` are the draws before the steps."""
    if first.place.rung == "draws":
        return _origin_draw(first, result.draws if result else before_fit, result)
    if result is None:
        text = {
            "structure": "The two models are not built alike.",
            "initial_weights": "The models are built alike, but not filled alike: it differs before the first step.",
        }.get(first.place.rung, "")
        counted = [draw for draw in before_fit if draw.difference and not draw.came_in]
        return f"{text} {tell(counted[0], before_fit)}" if text and counted else text
    if first.place.rung == "forward":
        return _origin_forward(first, result) + _random_hint(result)
    if first.place.rung == "gradients":
        return _origin_gradient(first, result)
    return {
        "batch": "The batch differs before the model has seen it.",
        "loss": "Every call and every output of the forward has the same bits; the loss made from them does not.",
        "weights": _origin_weights(first),
    }.get(first.place.rung, "")


def _origin_forward(first: Difference, result: StepResult) -> str:
    forward, place = result.forward, first.place
    call = forward.calls.get((place.module or "", place.call)) if forward and place.call is not None else None
    if forward is None or call is None:
        return "No call that was compared differs before it."
    if first.missing and call.lacking:
        return "The candidate never makes this call; everything compared before it has the same bits."
    if place.tensor and not place.tensor.startswith("output"):
        return (
            "Everything compared before this call has the same bits, its inputs do not: "
            f"born in {_code_of(call.parent)}, between the last call before it and this one."
        )
    inside = any(other.parent == call.key for other in forward.calls.values())
    order = f"It is the first such call in execution order ({call.order + 1:,} of {len(forward.calls):,})."
    if inside:
        return (
            f"Its inputs and all calls inside it have the same bits, its output does not: born in its own code. {order}"
        )
    return f"Its inputs have the same bits, its output does not. {order}"


def _code_of(parent: Key | None) -> str:
    if parent is None:
        return "the training step's own code"
    return f"the own code of `{parent[0]}`" if parent[0] else "the model's own forward"


def _origin_draw(first: Difference, draws: list[Draw], result: StepResult | None) -> str:
    told = next((tell(draw, draws) for draw in draws if draw.difference is first), "")
    text = f"Every value up to there has the same bits. {told or tell_state(first)}"
    if result and result.tallies["batch"].differences and (first.place.tensor or "").startswith(FETCH):
        text += " The batch differs, too: other draws make another batch, but another clip also draws otherwise."
    return text


def _random_hint(result: StepResult) -> str:
    """Of a forward that differs: whether its random draws do, too."""
    draws = [draw for draw in result.draws if draw.difference and phase_of(draw.stage) == FORWARD]
    if draws:
        return f" Random draws differ after it: {tell(draws[0], result.draws)}"
    states = [d for d in result.tallies["draws"].differences if (d.place.tensor or "").startswith("rng.forward_done")]
    generators = ", ".join(str(difference.place.tensor).rpartition(".")[2] for difference in states)
    return f" This forward also left other random states ({generators})." if states else ""


def _origin_gradient(first: Difference, result: StepResult) -> str:
    place, backward = first.place, result.backward
    if place.call is None:
        if place.module in backward.watched and place.module not in backward.differing_outputs:
            return "The gradient that arrives at this module's output has the same bits: born in its own backward."
        return "No gradient that backward reached before it differs."
    position = backward.order.index((place.module or "", place.call))
    if position == 0:
        return "It is the first gradient of all: born in the backward of the loss."
    before = backward.order[position - 1][0]
    return (
        f"Gradients that backward reached before it have the same bits, the last of them at the output of `{before}`: "
        f"born between the two, in the backward of what used this output."
    )


def _origin_weights(first: Difference) -> str:
    name = first.place.tensor or ""
    if name.startswith("param_groups"):
        return "Loss and gradients have the same bits; the optimizer is set otherwise."
    return "Loss and gradients have the same bits; what the step left behind does not."
