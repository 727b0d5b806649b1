"""How differences came about: born, came in, follows, unexplained.

A finding depends on what comes before it: on the outputs that its call was given and the calls inside, on the draws of
its stage, on the weights before the step, on the gradient that arrives. It was born where nothing differs among those.
All of it walks the findings in causal order, by the moments that the recordings are stamped with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nest_ssl.compare import findings as f
from nest_ssl.compare.findings import (
    Birth,
    Cause,
    Difference,
    Draw,
    Finding,
    Losses,
    Relation,
    RungName,
    Tally,
    Unexplained,
)  # fmt: skip
from nest_ssl.compare.rungs.forward import Key, Span
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import BEFORE_STEPS, Moment, Part, Phase

# What numbers flow through, each from the one before.
FLOW_RUNGS = ("start", "forward", "loss", "gradients", "optimizer_input", "weights")
# The draws that what differs on a rung may lead to; those of a forward also only in the call where it differs.
_LEADS_TO = {
    "start": (Phase.FORWARD, Phase.STEP_DONE),
    "forward": (Phase.FORWARD, Phase.FORWARD_DONE),
    "gradients": (Phase.BACKWARD, Phase.BACKWARD_DONE),
    "optimizer_input": (Phase.OPTIMIZER_STEP, Phase.STEP_DONE),
    "weights": (Phase.OPTIMIZER_STEP, Phase.STEP_DONE),
}


@dataclass(slots=True)
class StepFindings:
    """Everything found at one step of one rank, and the reference's calls; no tensor."""

    step: int
    rank: int
    tallies: dict[RungName, Tally]
    spans: dict[Key, Span] = field(default_factory=dict)
    reached: list[Key] = field(default_factory=list)  # calls whose output a gradient reached, in that order
    draws: list[Draw] = field(default_factory=list)
    moved: set[tuple[str | None, str | None]] = field(default_factory=set)  # by one side alone since the step before
    loss: Losses | None = None
    calls: list[f.CallJudgement] = field(default_factory=list)

    def of_calls(self) -> dict[Key, list[Finding]]:
        """The forward's findings by the reference's call that they belong to, in causal order."""
        found: dict[Key, list[Finding]] = defaultdict(list)
        for finding in self.tallies["forward"].findings:
            if finding.address.call is not None and key_of(finding) in self.spans:
                found[key_of(finding)].append(finding)
        return found

    def given_other_gradients(self) -> set[str | None]:
        """Modules at whose output another gradient arrived."""
        found = self.tallies["gradients"].findings
        return {finding.address.module for finding in found if finding.address.kind == Kind.OUTPUT_GRADIENT}


def key_of(finding: Finding) -> Key:
    return finding.address.module or "", finding.address.call or 0


def in_causal_order(tallies: Iterable[Tally], steps: Sequence[StepFindings]) -> list[Finding]:
    """Every finding. A module of another class is no other number yet, so it stands where that module is called."""
    spans = steps[0].spans if steps else {}

    def moment(finding: Finding) -> Moment:
        if finding.address.kind == Kind.MODULE and finding.address.slot == "class" and key_of(finding) in spans:
            return Moment(steps[0].step, Phase.FORWARD, spans[key_of(finding)].start, Part.DRAW)
        return finding.moment

    return sorted((finding for tally in tallies for finding in tally.findings), key=moment)


def headline(ordered: Sequence[Finding]) -> Finding | None:
    """Of all findings in causal order the one to put first.

    That is the first one that no rule allows, traced back: a tensor that flows through the model may differ because a
    smaller difference upstream has grown, so the first unlike bits are its origin as far as can be known. A setting, a
    shape, a missing name, a batch or an initial weight cannot have grown so, and stands for itself.
    """
    beyond = next((finding for finding in ordered if not finding.within), None)
    return ordered[0] if ordered and (beyond is None or (beyond.metrics and beyond.rung in FLOW_RUNGS)) else beyond


def judge_calls(step: StepFindings, changed: Collection[str | None] | None) -> list[f.CallJudgement]:
    """Every call that is not the same on both sides, in execution order, with how it came to differ.

    Args:
        changed: modules with own parameters or buffers that differed before this step; None if that is not known.
    """
    found = step.of_calls()
    ordered = sorted((finding for findings in found.values() for finding in findings), key=lambda one: one.moment)
    drawn = {(s.module, s.call) for draw in step.draws if draw.finding for s in (*draw.reference, *draw.candidate)}
    judged = []
    for key in sorted(found, key=lambda key: step.spans[key].order):
        span = step.spans[key]
        inputs, outputs = (
            [one for one in found[key] if one.address.kind in kinds]
            for kinds in ((Kind.INPUT, Kind.MODULE), (Kind.OUTPUT,))
        )
        if not inputs and not outputs:
            continue  # never called
        # Born inside, unless what differs first inside are the inputs that its own code made for a call.
        inside = next((one for one in ordered if span.start < one.moment.event < span.end), None)
        if inputs or not outputs:
            relation = Relation.CAME_IN if outputs else Relation.STOPPED
        elif inside and (inside.address.kind != Kind.INPUT or step.spans[key_of(inside)].parent != key):
            relation = Relation.INSIDE
        elif key in drawn:
            relation = Relation.NUMBERS
        elif changed is None:
            relation = Relation.UNKNOWN
        else:
            relation = Relation.WEIGHTS if key[0] in changed else Relation.BORN
        worst = max(outputs or inputs, key=lambda one: one.size)
        judged.append(f.CallJudgement(step.step, *key, relation, span.order, worst, step.rank))
    return judged


# --- the headline -----------------------------------------------------------------------------------------------------


def cause_of(
    first: Finding, steps: Sequence[StepFindings], before: Sequence[Draw], recorded: Sequence[int], grown: bool
) -> Cause | None:
    """How the headline arose; None for a setting.

    Args:
        before: the draws before the steps.
        recorded: steps that both sides recorded.
        grown: whether other bits part before it, which it cannot have grown from.
    """
    module = first.address.module
    step = next((one for one in steps if (one.step, one.rank) == (first.moment.step, first.address.rank)), None)
    if first.rung == "contract":
        return None
    if first.rung == "draws":
        draw = next((draw for draw in (step.draws if step else before) if draw.finding is first), None)
        fetched = bool(step and first.moment.phase == Phase.FETCH and step.tallies["batch"].findings)
        cause = Cause(Birth.DRAW if draw else Birth.STATE, module, draw=draw, batch_differs=fetched)
    elif first.rung in _BESIDE_RUNGS or first.address.kind in _BESIDE_KINDS:
        cause = Cause(_birth_beside_the_flow(first), module)
    elif step is None:
        birth = Birth.BUILT_OTHERWISE if first.rung == "structure" else Birth.FILLED_OTHERWISE
        cause = Cause(birth, module, draw=next((draw for draw in before if draw.finding and not draw.came_in), None))
    elif first.rung == "forward":
        cause = _cause_in_forward(first, step)
    elif first.rung == "gradients" and first.address.call is None:
        own = module in {key[0] for key in step.reached} - step.given_other_gradients()
        cause = Cause(Birth.OWN_BACKWARD if own else Birth.GRADIENT, module)
    elif first.rung == "gradients":
        place = step.reached.index(key_of(first))
        after = step.reached[place - 1][0] if place else None
        cause = Cause(Birth.BETWEEN_BACKWARDS if place else Birth.FIRST_GRADIENT, module, after)
    elif first.address.kind == Kind.OPTIMIZER_SETTING:
        cause = Cause(Birth.OPTIMIZER_SETTING)
    else:
        in_memory = first.rung == "batch" and first.difference == Difference.SETTING
        births = {"batch": Birth.MEMORY if in_memory else Birth.BATCH, "loss": Birth.LOSS, "weights": Birth.UPDATE}
        cause = Cause(births[first.rung], module)
    if grown:
        return replace(cause, birth=Birth.GROWN)
    gap = unrecorded(recorded, first.moment.step)
    if gap and cause.birth == Birth.BETWEEN_STEPS:
        return replace(cause, birth=Birth.UNRECORDED, unrecorded=gap)
    started = step and step.tallies["start"].compared["parameters"]  # the same: what went before does not matter
    return cause if started else replace(cause, unrecorded=gap)


# What neither a call nor the backward makes.
_BESIDE_RUNGS = ("validation", "start", "optimizer_input")
_BESIDE_KINDS = (Kind.GRADIENT_BEFORE, Kind.SCHEDULE)


def _birth_beside_the_flow(first: Finding) -> Birth:
    if first.rung == "validation":
        return Birth.VALIDATION
    if first.rung == "start":
        return Birth.MODE if first.address.kind == Kind.MODULE else Birth.BETWEEN_STEPS
    if first.address.kind == Kind.GRADIENT_BEFORE:
        return Birth.CLEARED if first.candidate == "nothing" else Birth.NOT_CLEARED
    return {
        Kind.APPLIED_GRADIENT: Birth.CLIPPING,
        Kind.UPDATE: Birth.NO_UPDATE,
        Kind.OPTIMIZER_SETTING: Birth.OPTIMIZER_SETTING,
        Kind.OPTIMIZER_STATE: Birth.OPTIMIZER_STATE,
        Kind.SCHEDULE: Birth.SCHEDULE,
    }[first.address.kind]


def unrecorded(steps: Sequence[int], step: int) -> tuple[int, int] | None:
    """The first and the last of the steps just before `step` that were not recorded."""
    last = max((earlier for earlier in steps if earlier < step), default=-1)
    return (last + 1, step - 1) if step > last + 1 else None


def _cause_in_forward(first: Finding, step: StepFindings) -> Cause:
    draw = next((draw for draw in step.draws if draw.finding and draw.moment.phase == Phase.FORWARD), None)
    left = [one.address.slot for one in step.tallies["draws"].findings if one.moment.phase == Phase.FORWARD_DONE]
    cause = Cause(Birth.MODEL_OUTPUT, first.address.module, draw=draw, states=() if draw else tuple(left))
    span = step.spans.get(key_of(first)) if first.address.call is not None else None
    if span is None:
        return cause
    cause = replace(cause, birth=Birth.OUTPUT, order=span.order, calls=len(step.spans))
    if first.address.kind == Kind.CALL:
        return replace(cause, birth=Birth.NEVER_CALLED)
    if first.address.kind == Kind.MODULE:
        return replace(cause, birth=Birth.MODE)
    if first.address.kind == Kind.INPUT:
        producer = span.producers.get(".".join(part for part in (first.address.slot, first.address.path) if part))
        module = span.parent[0] if span.parent else None
        return replace(cause, birth=Birth.BEFORE_CALL, module=module, after=producer[0] if producer else None)
    inside = any(other.parent == key_of(first) for other in step.spans.values())
    return replace(cause, birth=Birth.OWN_CODE) if inside else cause


# --- what follows, and what does not ----------------------------------------------------------------------------------


def consequences(first: Finding, tallies: Iterable[Tally]) -> list[f.Consequence]:
    """How much differs from the headline on, rung by rung, in the order in which they begin to."""
    found = []
    for tally in tallies if first.rung != "contract" else ():
        own = any(finding is first for finding in tally.findings)
        count = tally.differing + tally.missing_reference + tally.missing_candidate - own
        later = [finding.moment for finding in tally.findings if finding.moment >= first.moment]
        if count > 0 and later:
            sizes = [one.metrics.max_abs for one in tally.findings if one.metrics and one.metrics.max_abs is not None]
            largest = float(max(sizes)) if sizes and tally.rung == "loss" else None
            found.append((min(later), f.Consequence(tally.rung, tally.step, count, largest)))
    return [consequence for _, consequence in sorted(found, key=lambda each: each[0])]


def unexplained(
    first: Finding, ordered: Sequence[Finding], steps: Sequence[StepFindings], cause: Cause | None
) -> list[f.Remainder]:
    """What differs although nothing recorded that it depends on does, apart from the headline."""
    left: dict[Unexplained, list[Finding]] = {why: [] for why in Unexplained}
    walk = _Walk(first, ordered, steps, cause)
    for finding in ordered if first.rung != "contract" else ():
        why = walk.why(finding) if finding is not first else None
        if why:
            left[why].append(finding)
    return [f.Remainder(why, tuple(findings)) for why, findings in left.items() if findings]


def _same_change(one: Finding, other: Finding) -> bool:
    """Whether two fields differ by as much in the same place, as a sum does with one of its terms."""
    sizes = [each.metrics.max_abs if each.metrics else None for each in (one, other)]
    if sizes[0] is None or sizes[1] is None or one.index != other.index:
        return False
    return abs(sizes[0] - sizes[1]) <= 1e-3 * sizes[0]


class _Walk:
    """What differs, by what it may lead to."""

    def __init__(
        self, first: Finding, ordered: Sequence[Finding], steps: Sequence[StepFindings], cause: Cause | None
    ) -> None:
        number = first.moment.step if first.moment.step != BEFORE_STEPS or not steps else steps[0].step
        empty = StepFindings(number, 0, {})
        self.first = first
        self.step = next((s for s in steps if (s.step, s.rank) == (number, first.address.rank)), empty)
        by_rung: dict[str, list[Finding]] = defaultdict(list)
        for finding in ordered:
            by_rung[finding.rung].append(finding)
        draws = by_rung["draws"]
        self.drawn_before = any(one.moment.step == BEFORE_STEPS for one in draws)
        made = [one.moment.step for one in draws if Phase.FIT_START <= one.moment.phase <= Phase.BATCH_READY]
        self.batches_made = min(made, default=None)  # the first step whose batch other draws may have made
        self.draw = draws[0] if draws else None
        self.changed = {one.address.module for one in [*by_rung["initial_weights"], *by_rung["start"]]}
        self.earliest: dict[str, Moment] = {}  # the first finding of each rung, and of each kind
        for one in reversed(ordered):
            self.earliest |= {one.rung: one.moment, one.address.kind.value: one.moment}
        blamed = {
            first.address.module,
            cause.module if cause else None,
            *(o.address.module for o in by_rung["structure"]),
        }
        calls = self.step.calls
        # What is around the headline is no other birthplace.
        around = [name for name in blamed if name is not None]
        self.born = [
            one.worst
            for one in calls
            if one.relation == Relation.BORN
            and not any(f".{name}.".startswith(f".{one.module}.") or not one.module for name in around)
        ]
        lacking = [one.address for one in by_rung["structure"] if one.missing]
        self.lacking = {f"params.{address.module}.{address.slot}" for address in lacking}
        if not self.step.draws and any(
            one.moment.step <= number and one.moment.phase <= Phase.FORWARD_DONE for one in draws
        ):
            self.born = []  # without a ledger, other random states excuse whatever may have drawn
        here = [one for one in ordered if (one.moment.step, one.address.rank) == (number, self.step.rank)]
        self.outputs = any(one.rung == "forward" for one in here)  # also of the modules that make the loss
        self.forward = self.changed | {one.module for one in calls}
        self.backward = self.forward | (self.step.given_other_gradients() if self.step.tallies else set())
        moved = (Kind.GRADIENT, Kind.OPTIMIZER_STATE)
        self.updated = {(one.address.module, one.address.slot) for one in here if one.address.kind in moved}

    def why(self, finding: Finding) -> Unexplained | None:
        """Why a finding is not explained by another one; None where it may be."""
        first, address, rung, step = self.first, finding.address, finding.rung, finding.moment.step
        if rung == "structure":  # what a module is made of follows from nothing that was computed before it
            return Unexplained.CLASSES if address.slot == "class" and first.rung != rung else None
        if rung == "initial_weights":  # they may also follow from another state of the random stream
            alone = (
                first.rung in ("structure", rung) and not self.drawn_before and address.module != first.address.module
            )
            return Unexplained.INITIAL_WEIGHTS if alone else None
        if rung == "batch" and first.rung == rung:
            return Unexplained.OTHER_FIELDS if step == first.moment.step and not _same_change(first, finding) else None
        if rung == "batch":
            return Unexplained.FIELDS if self.batches_made is None or step < self.batches_made else None
        if rung in _BESIDE_RUNGS or address.kind in _BESIDE_KINDS:
            return self._why_beside_the_flow(finding)
        if rung == "draws":
            return Unexplained.DRAWS if finding is self.draw and not self._explains_draw(finding) else None
        if (step, address.rank) != (self.step.step, self.step.rank):
            return None
        if rung == "forward":
            return Unexplained.CALLS if any(finding is one for one in self.born) else None
        if rung == "loss":
            return None if self.outputs else Unexplained.LOSS
        if address.kind == Kind.GRADIENT and first.address.kind != Kind.GRADIENT_BEFORE:
            inside = any(name is not None and f"{name}.".startswith(f"{address.module}.") for name in self.backward)
            reached = address.module in {key[0] for key in self.step.reached} - {first.address.module}
            return Unexplained.GRADIENTS if reached and not inside else None
        follows = first.rung in (rung, "optimizer_input") and first.address.kind != Kind.SCHEDULE
        if rung != "weights" or follows:
            return None
        if address.kind == Kind.OPTIMIZER_SETTING:
            repeated = self.earliest[address.kind.value] < finding.moment or first.address.kind == Kind.SCHEDULE
            return None if repeated or address.path in self.lacking else Unexplained.OPTIMIZER
        own = (address.module, address.slot) not in self.updated and address.module not in self.forward
        return Unexplained.UPDATES if own and address.kind in (Kind.PARAMETER, Kind.BUFFER) else None

    def _why_beside_the_flow(self, finding: Finding) -> Unexplained | None:
        """Other weights explain a validation and what a step starts from; other gradients what the optimizer gets."""
        kind, first = finding.address.kind, self.first
        left = ("weights", "start", "initial_weights", "validation")
        names, why = {
            "validation": (left, Unexplained.VALIDATION),
            "start": (left, Unexplained.START),
            "gradients": ((), Unexplained.GRADIENTS_BEFORE),
            "optimizer_input": ((*left, "gradients"), Unexplained.OPTIMIZER_INPUT),
            "weights": ((), Unexplained.OPTIMIZER),
        }[finding.rung]
        if kind == Kind.OPTIMIZER_SETTING:
            names, why = (Kind.SCHEDULE.value, kind.value), Unexplained.OPTIMIZER  # a schedule sets rates
        alike = first.rung == finding.rung and (first.rung != "gradients" or first.address.kind == kind)
        earlier = any(name in self.earliest and self.earliest[name] < finding.moment for name in names)
        return None if alike or earlier or finding.address.path in self.lacking else why

    def _explains_draw(self, draw: Finding) -> bool:
        """Whether the headline may have led to the first draw that differs."""
        first, same_step = self.first, draw.moment.step == self.first.moment.step
        if first.rung in ("draws", "structure", "batch"):
            return True
        if first.rung == "initial_weights":
            return draw.moment.step == BEFORE_STEPS
        low, high = _LEADS_TO.get(first.rung, (Phase.STEP_DONE, Phase.CONTRACT))
        if not same_step or not low <= draw.moment.phase <= high:
            return False
        span = self.step.spans.get(key_of(draw))
        if draw.address.module is None or span is None:
            return True
        events = [finding.moment.event for found in self.step.of_calls().values() for finding in found]
        return any(span.start <= event < draw.moment.event for event in events)
