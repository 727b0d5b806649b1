"""How differences came about: born, came in, follows, unexplained.

A finding depends on what comes before it: on the outputs that its call was given and the calls inside, on the draws of
its stage, on the weights before the step, on the gradient that arrives. It was born where nothing differs among those.
All of it is one walk in causal order, by the moments that the recording is stamped with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from nest_ssl.compare.comparison import Losses
from nest_ssl.compare.findings import (
    Birth,
    CallJudgement,
    Cause,
    Consequence,
    Draw,
    Finding,
    Relation,
    Remainder,
    RungName,
    Tally,
    Unexplained,
)
from nest_ssl.compare.rungs.forward import Key, Span
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import BEFORE_STEPS, Moment, Part, Phase

FLOW_RUNGS = ("forward", "loss", "gradients", "weights")  # what numbers flow through, each from the one before
_BATCH = (Phase.BEFORE_MODEL, Phase.BATCH_READY)  # between these, draws make batches and their order


@dataclass(slots=True)
class StepFindings:
    """Everything found at one step of one rank, and the reference's calls; no tensor."""

    step: int
    rank: int
    tallies: dict[RungName, Tally]
    spans: dict[Key, Span] = field(default_factory=dict)
    reached: list[Key] = field(default_factory=list)  # calls whose output a gradient reached, in that order
    draws: list[Draw] = field(default_factory=list)
    loss: Losses | None = None
    calls: list[CallJudgement] = field(default_factory=list)

    def findings(self, *rungs: RungName) -> list[Finding]:
        return [finding for rung in rungs or self.tallies for finding in self.tallies[rung].findings]


def in_causal_order(run: Iterable[Tally], steps: Sequence[StepFindings]) -> list[Finding]:
    """Every finding. A module of another class is no other number yet, so it stands where that module is called."""
    spans = steps[0].spans if steps else {}

    def moment(finding: Finding) -> Moment:
        span = spans.get((finding.address.module or "", 0))
        if span and finding.address.kind == Kind.MODULE and finding.address.slot == "class":
            return Moment(steps[0].step, Phase.FORWARD, span.start, Part.DRAW)
        return finding.moment

    found = [finding for tally in run for finding in tally.findings]
    return sorted([*found, *(finding for step in steps for finding in step.findings())], key=moment)


def headline(ordered: Sequence[Finding]) -> Finding | None:
    """Of all findings in causal order the one to put first.

    That is the first one that no rule allows, traced back: a tensor that flows through the model may differ because a
    smaller difference upstream has grown, so the first unlike bits are its origin as far as can be known. A setting, a
    shape, a missing name, a batch or an initial weight cannot have grown so, and stands for itself.
    """
    beyond = next((finding for finding in ordered if not finding.within), None)
    return ordered[0] if ordered and (beyond is None or (beyond.metrics and beyond.rung in FLOW_RUNGS)) else beyond


# --- calls ------------------------------------------------------------------------------------------------------------


def judge_calls(step: StepFindings, changed: Collection[str | None] | None) -> list[CallJudgement]:
    """Every call that is not the same on both sides, in execution order, with how it came to differ.

    Args:
        changed: modules with own parameters or buffers that differed before this step; None if that is not known.
    """
    found = _of_calls(step)
    ordered = sorted((finding for findings in found.values() for finding in findings), key=lambda f: f.moment)
    drawn = {(s.module, s.call) for draw in step.draws if draw.finding for s in (*draw.reference, *draw.candidate)}
    judged = []
    for key, findings in sorted(found.items(), key=lambda item: step.spans[item[0]].order):
        inputs = [finding for finding in findings if finding.address.kind == Kind.INPUT]
        outputs = [finding for finding in findings if finding.address.kind == Kind.OUTPUT]
        if not inputs and not outputs:
            continue  # never called
        if not outputs or inputs:
            relation = Relation.CAME_IN if outputs else Relation.STOPPED
        elif not _own_code(step, key, ordered):
            relation = Relation.INSIDE
        elif key in drawn:
            relation = Relation.NUMBERS
        elif changed is None:
            relation = Relation.UNKNOWN
        else:
            relation = Relation.WEIGHTS if key[0] in changed else Relation.BORN
        worst = max(outputs or inputs, key=_size)
        judged.append(CallJudgement(step.step, *key, relation, step.spans[key].order, worst, step.rank))
    return judged


def _of_calls(step: StepFindings) -> dict[Key, list[Finding]]:
    """The forward's findings by the reference's call that they belong to."""
    found: dict[Key, list[Finding]] = defaultdict(list)
    for finding in step.findings("forward"):
        key = finding.address.module or "", finding.address.call or 0
        if finding.address.call is not None and key in step.spans:
            found[key].append(finding)
    return found


def _own_code(step: StepFindings, key: Key, ordered: Sequence[Finding]) -> bool:
    """Whether nothing inside the call differs first, or else the inputs that its own code made for a call inside."""
    span = step.spans[key]
    first = next((finding for finding in ordered if span.start < finding.moment.event < span.end), None)
    if first is None:
        return True
    inner = step.spans[first.address.module or "", first.address.call or 0]
    return first.address.kind == Kind.INPUT and inner.parent == key


def _size(finding: Finding) -> tuple[int, float]:
    metrics = finding.metrics
    return (1, 0.0) if metrics is None or metrics.nonfinite_disagree else (0, float(metrics.max_abs or 0.0))


# --- the headline -----------------------------------------------------------------------------------------------------


def cause_of(
    first: Finding,
    ordered: Sequence[Finding],
    steps: Sequence[StepFindings],
    before: Sequence[Draw],
    recorded: Sequence[int],
) -> Cause | None:
    """How the headline arose; None for a setting.

    Args:
        before: the draws before the steps.
        recorded: steps that both sides recorded.
    """
    step = next((s for s in steps if (s.step, s.rank) == (first.moment.step, first.address.rank)), None)
    if first.rung == "contract":
        return None
    if first.rung == "draws":
        cause = _cause_of_draw(first, step, before)
    elif first.rung == "forward" and step:
        cause = _cause_in_forward(first, step)
    elif first.rung == "gradients" and step:
        cause = _cause_in_gradients(first, step)
    elif step is None:
        birth = Birth.BUILT_OTHERWISE if first.rung == "structure" else Birth.FILLED_OTHERWISE
        draw = next((draw for draw in before if draw.finding and not draw.came_in), None)
        cause = Cause(birth, first.address.module, draw=draw)
    elif first.address.kind == Kind.OPTIMIZER_SETTING:
        cause = Cause(Birth.OPTIMIZER_SETTING)
    else:
        births = {"batch": Birth.BATCH, "loss": Birth.LOSS, "weights": Birth.UPDATE}
        cause = Cause(births[first.rung], first.address.module)
    if first is not ordered[0]:  # other bits part before it, which it cannot have grown from
        return replace(cause, birth=Birth.GROWN)
    return replace(cause, unrecorded=unrecorded(recorded, first.moment.step))


def unrecorded(steps: Sequence[int], step: int) -> tuple[int, int] | None:
    """The first and the last of the steps just before `step` that were not recorded."""
    last = max((earlier for earlier in steps if earlier < step), default=-1)
    return (last + 1, step - 1) if step > last + 1 else None


def _cause_of_draw(first: Finding, step: StepFindings | None, before: Sequence[Draw]) -> Cause:
    draw = next((draw for draw in (step.draws if step else before) if draw.finding is first), None)
    fetched = first.moment.phase == Phase.FETCH and step is not None and bool(step.findings("batch"))
    return Cause(Birth.DRAW if draw else Birth.STATE, first.address.module, draw=draw, batch_differs=fetched)


def _cause_in_forward(first: Finding, step: StepFindings) -> Cause:
    draws = [draw for draw in step.draws if draw.finding and draw.moment.phase == Phase.FORWARD]
    states = [f.address.slot for f in step.findings("draws") if f.moment.phase == Phase.FORWARD_DONE and not draws]
    cause = Cause(Birth.MODEL_OUTPUT, first.address.module, draw=draws[0] if draws else None, states=tuple(states))
    key = first.address.module or "", first.address.call or 0
    span = step.spans.get(key) if first.address.call is not None else None
    if span is None:
        return cause
    cause = replace(cause, birth=Birth.OUTPUT, order=span.order, calls=len(step.spans))
    if first.address.kind == Kind.CALL:
        return replace(cause, birth=Birth.NEVER_CALLED)
    if first.address.kind == Kind.INPUT:
        return replace(cause, birth=Birth.BEFORE_CALL, module=span.parent[0] if span.parent else None)
    inside = any(other.parent == key for other in step.spans.values())
    return replace(cause, birth=Birth.OWN_CODE) if inside else cause


def _cause_in_gradients(first: Finding, step: StepFindings) -> Cause:
    module = first.address.module
    if first.address.call is None:
        own = module in {key[0] for key in step.reached} and module not in _modules_given_other_gradients(step)
        return Cause(Birth.OWN_BACKWARD if own else Birth.GRADIENT, module)
    position = step.reached.index((module or "", first.address.call))
    if position == 0:
        return Cause(Birth.FIRST_GRADIENT, module)
    return Cause(Birth.BETWEEN_BACKWARDS, module, after=step.reached[position - 1][0])


def _modules_given_other_gradients(step: StepFindings) -> set[str | None]:
    return {f.address.module for f in step.findings("gradients") if f.address.kind == Kind.OUTPUT_GRADIENT}


# --- what follows, and what does not ----------------------------------------------------------------------------------


def consequences(first: Finding, tallies: Iterable[Tally]) -> list[Consequence]:
    """How much differs from the headline on, rung by rung."""
    found = []
    for tally in tallies if first.rung != "contract" else ():
        own = any(finding is first for finding in tally.findings)
        count = tally.differing + tally.missing_reference + tally.missing_candidate - own
        later = any(finding.moment >= first.moment for finding in tally.findings)
        if count > 0 and later:
            sizes = [f.metrics.max_abs for f in tally.findings if f.metrics and f.metrics.max_abs is not None]
            largest = float(max(sizes)) if sizes and tally.rung == "loss" else None
            found.append(Consequence(tally.rung, tally.step, count, largest))
    return found


def unexplained(
    first: Finding, ordered: Sequence[Finding], steps: Sequence[StepFindings], cause: Cause | None
) -> list[Remainder]:
    """What differs although nothing recorded that it depends on does, apart from the headline."""
    if first.rung == "contract":
        return []
    step = next((s for s in steps if (s.step, s.rank) == (first.moment.step, first.address.rank)), None)
    if step is None and first.moment.step == BEFORE_STEPS:
        step = next((s for s in steps if s.rank == first.address.rank), None)
    remainders = [*_before_the_model(first, ordered, steps)]
    if step:
        remainders += _within_the_step(first, ordered, step, cause.module if cause else None)
    found = ((why, tuple(f for f in findings if f is not first)) for why, findings in remainders)
    return [Remainder(why, findings) for why, findings in found if findings]


_Left = tuple[Unexplained, list[Finding]]


def _before_the_model(first: Finding, ordered: Sequence[Finding], steps: Sequence[StepFindings]) -> Iterator[_Left]:
    by_rung: dict[str, list[Finding]] = defaultdict(list)
    for finding in ordered:
        by_rung[finding.rung].append(finding)
    draws, batch = by_rung["draws"], by_rung["batch"]
    if first.rung != "structure":  # what a module is made of follows from nothing that was computed before it
        yield Unexplained.CLASSES, [f for f in by_rung["structure"] if f.address.slot == "class"]
    if first.rung in ("structure", "initial_weights") and not any(f.moment.step == BEFORE_STEPS for f in draws):
        others = [f for f in by_rung["initial_weights"] if f.address.module != first.address.module]
        yield Unexplained.INITIAL_WEIGHTS, others  # else they may follow from another state of the random stream
    if first.rung == "batch":
        yield Unexplained.OTHER_FIELDS, [f for f in batch if f.moment.step == first.moment.step]
    else:
        made = min((f.moment.step for f in draws if _makes_batches(f)), default=None)
        yield Unexplained.FIELDS, [f for f in batch if made is None or f.moment.step < made]
    alone = first.rung in ("forward", "loss", "gradients", "weights") or (
        first.rung == "initial_weights" and draws and draws[0].moment.step != BEFORE_STEPS
    )
    if draws and alone and not _explains_draw(first, draws[0], steps):
        yield Unexplained.DRAWS, draws[:1]


def _makes_batches(draw: Finding) -> bool:
    return Phase.FIT_START <= draw.moment.phase <= Phase.BATCH_READY


_PHASES = {"batch": (Phase.VALIDATION, Phase.BATCH_READY), "forward": (Phase.FORWARD, Phase.FORWARD_DONE),
           "gradients": (Phase.BACKWARD, Phase.BACKWARD_DONE),
           "weights": (Phase.OPTIMIZER_STEP, Phase.STEP_DONE)}  # fmt: skip


def _explains_draw(first: Finding, draw: Finding, steps: Sequence[StepFindings]) -> bool:
    """Whether `first` may have led to other draws: it is in the same rung of the step, and where a call drew,
    something differs in that call before it."""
    low, high = _PHASES.get(first.rung, (Phase.STEP_DONE, Phase.CONTRACT))
    if draw.moment.step != first.moment.step or not low <= draw.moment.phase <= high:
        return False
    step = next(s for s in steps if (s.step, s.rank) == (draw.moment.step, draw.address.rank))
    span = step.spans.get((draw.address.module or "", draw.address.call or 0))
    if draw.address.module is None or span is None:
        return True
    events = [f.moment.event for findings in _of_calls(step).values() for f in findings]
    return any(span.start <= event < draw.moment.event for event in events)


def _within_the_step(
    first: Finding, ordered: Sequence[Finding], step: StepFindings, born_in: str | None
) -> Iterator[_Left]:
    changed = {f.address.module for f in ordered if f.rung == "initial_weights"}
    rebuilt = {f.address.module for f in ordered if f.rung == "structure"}
    earlier = [f for f in ordered if f.rung == "draws" and f.moment.step <= step.step]
    if step.draws or not any(f.moment.phase <= Phase.FORWARD_DONE for f in earlier):
        # Without a ledger, other random states excuse whatever may have drawn.
        blamed = {first.address.module, born_in, *rebuilt}
        calls = [call for call in step.calls if call.relation == Relation.BORN and call.module not in blamed]
        yield Unexplained.CALLS, [call.worst for call in calls]
    if not any(f.address.module is None for f in step.findings("forward")):
        yield Unexplained.LOSS, step.findings("loss")
    forward = {call.module for call in step.calls}
    differing = forward | changed | _modules_given_other_gradients(step)
    reached = {key[0] for key in step.reached}
    yield (
        Unexplained.GRADIENTS,
        [
            f
            for f in step.findings("gradients")
            if f.address.kind == Kind.GRADIENT
            and f.address.module in reached - {first.address.module}
            and not any(name is not None and f"{name}.".startswith(f"{f.address.module}.") for name in differing)
        ],
    )
    if first.rung != "weights":
        after = step.findings("weights")
        yield Unexplained.OPTIMIZER, [f for f in after if f.address.kind == Kind.OPTIMIZER_SETTING]
        moved = (*step.findings("gradients"), *(f for f in after if f.address.kind == Kind.OPTIMIZER_STATE))
        updated = {(f.address.module, f.address.slot) for f in moved if f.address.kind != Kind.OUTPUT_GRADIENT}
        yield (
            Unexplained.UPDATES,
            [
                f
                for f in after
                if f.address.kind in (Kind.PARAMETER, Kind.BUFFER)
                and (f.address.module, f.address.slot) not in updated
                and f.address.module not in changed | forward
            ],
        )
