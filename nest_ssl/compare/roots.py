"""What differs end to end on its own: everything recorded that it depends on has the same bits on both sides.

`causes` explains one difference, the first. Here each of them is asked, so that faults in different parts of training
show beside each other as far as recordings alone can say. Where the forward differs, what backward makes of it can no
longer be separated from what came in; that takes a replay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from nest_ssl.compare.causes import StepFindings, key_of
from nest_ssl.compare.findings import Draw, Finding, Relation, RungName, Tally
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import BEFORE_STEPS

SCHEDULED = ("lr", "initial_lr")  # settings of the optimizer that a schedule makes
MODES: tuple[RungName, ...] = ("start", "forward")  # rungs in which a module's mode is compared
_AFTER = (Kind.PARAMETER, Kind.UPDATE, Kind.OPTIMIZER_STATE)
Slot = tuple[str | None, str | None]  # module and name of a parameter in it


@dataclass(frozen=True, slots=True)
class Root:
    """One difference that nothing recorded explains.

    Args:
        phase: as of `born.Born`.
        module: in whose own code it arose; None where it is no module's.
        findings: the first stands for all.
    """

    phase: str
    module: str | None
    findings: tuple[Finding, ...]

    @property
    def finding(self) -> Finding:
        return self.findings[0]


def roots_of(
    run: Sequence[Tally], before: Sequence[Draw], steps: Sequence[StepFindings], went_on_at: Collection[int] = ()
) -> list[Root]:
    """All of them, in causal order.

    Args:
        run: what was found before the steps.
        before: draws before the steps.
        steps: what was found in them, in order.
        went_on_at: steps at which a side went on from a checkpoint.
    """
    found = {tally.rung: tally.findings for tally in run}
    roots = _by_module("structure", found["structure"])
    drawn = [draw for draw in before if draw.finding and not draw.came_in]
    initial = _by_module("initial weights", found["initial_weights"])
    roots += initial[:1] if drawn else initial  # the others may follow from the draw
    roots += _of_draws(drawn)
    apart = {finding.address.module for finding in found["initial_weights"]}
    validations = {tally.step: tally.findings for tally in run if tally.rung == "validation"}
    numbers = {step.step for step in steps}
    alone = False  # whether updates are made with other batches, as where only one side accumulates
    switched: set[str | None] = set()  # modules in another mode since an earlier step
    carried: set[Slot] = set()  # parameters with another gradient in the step before, to which this one's may be added
    for step in steps:
        roots += _of_validation(validations.pop(step.step, ()), apart)
        start = _outermost(step.tallies["start"].findings)
        start = [one for one in start if not (_is_mode(one) and one.address.module in switched)]
        between = [one for one in start if one.address.module not in apart or _slot(one) in step.moved]
        # Behind a step that was not recorded it may be most of the model, and is one root.
        gap = step.step > 0 and step.step - 1 not in numbers and step.step not in went_on_at
        given = step.tallies["optimizer_input"].findings
        if gap and not between:  # what the optimizer goes on from is as old
            states = [one for one in given if one.address.kind == Kind.OPTIMIZER_STATE]
            between = [one for one in states if one.address.module not in apart]
        roots += _by_module("between steps", between[:1] if gap else between)
        apart |= {finding.address.module for finding in between}
        here = [*_of_step(step, apart, carried)]
        switched = {one.address.module for name in MODES for one in step.tallies[name].findings if _is_mode(one)}
        carried = {_slot(one) for one in step.tallies["gradients"].findings if one.address.kind == Kind.GRADIENT}
        alone = alone or any(one.address.kind == Kind.UPDATE for one in given)
        # Where one side alone makes an update, rates and what backward adds to follow from how many it has made.
        counted = [one for one in here if one.phase == "schedule" or one.finding.address.kind == Kind.GRADIENT_BEFORE]
        roots += [one for one in here if not (alone and one in counted)]
        apart |= {finding.address.module for finding in step.tallies["weights"].findings}
    return roots + [root for findings in validations.values() for root in _of_validation(findings, apart)]


def _of_validation(findings: Sequence[Finding], apart: set[str | None]) -> list[Root]:
    """The first difference, unless weights differ; the others may follow from it."""
    return _by_module("validation", findings[:1]) if not apart else []


def _by_module(phase: str, findings: Iterable[Finding]) -> list[Root]:
    groups: dict[str | None, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.address.module, []).append(finding)
    return [Root(phase, module, tuple(group)) for module, group in groups.items()]


def _of_draws(draws: Iterable[Draw]) -> list[Root]:
    return [Root("draws", draw.stage.module, (draw.finding,)) for draw in draws if draw.finding and not draw.came_in]


def _of_step(step: StepFindings, apart: set[str | None], carried: set[Slot]) -> Iterator[Root]:
    """Roots of one step.

    Args:
        apart: modules whose weights differed before it.
        carried: parameters whose gradient differed in the step before.
    """
    batch = step.tallies["batch"].findings
    if batch:
        yield Root("batch", None, tuple(batch))
    yield from _of_draws(step.draws)
    yield from _of_forward(step, apart)
    forward = step.tallies["forward"].findings
    loss = step.tallies["loss"].findings
    if loss and not forward:
        yield Root("loss", None, tuple(loss))
    held = [one for one in step.tallies["gradients"].findings if one.address.kind == Kind.GRADIENT_BEFORE]
    if held:  # not cleared, or too early: all gradients follow
        yield Root("backward", None, tuple(held))
    gradients = step.tallies["gradients"].findings if not (forward or loss or apart or held) else []
    arriving = [one for one in gradients if one.address.kind == Kind.OUTPUT_GRADIENT]
    if arriving:  # all later ones may follow from the first
        reached = step.reached.index(key_of(arriving[0]))
        yield Root("backward", step.reached[reached - 1][0] if reached else None, (arriving[0],))
    passed = {module for module, _ in step.reached} - step.given_other_gradients()
    own = [one for one in gradients if one.address.kind == Kind.GRADIENT and one.address.module in passed]
    yield from _by_module("backward", [one for one in own if _slot(one) not in carried])
    yield from _of_update(step, apart)


def _is_mode(finding: Finding) -> bool:
    """Training or evaluation."""
    return finding.address.kind == Kind.MODULE and finding.address.slot == "training"


def _outermost(findings: Sequence[Finding]) -> list[Finding]:
    """Without the modes of modules in one that was switched the same way: they were switched with it."""
    modes = {one.address.module: one.candidate for one in findings if _is_mode(one)}

    def follows(module: str | None, mode: object) -> bool:
        around = (module or "").split(".")
        return any(modes.get(".".join(around[:end])) == mode for end in range(len(around)))

    return [one for one in findings if not (_is_mode(one) and follows(one.address.module, one.candidate))]


def _slot(finding: Finding) -> Slot:
    return finding.address.module, finding.address.slot


def _of_forward(step: StepFindings, apart: set[str | None]) -> Iterator[Root]:
    found = step.of_calls()
    ordered = sorted((one for findings in found.values() for one in findings), key=lambda one: one.moment)
    modes = [one for one in ordered if _is_mode(one)]
    before = {one.address.module for one in step.tallies["start"].findings if one.address.kind == Kind.MODULE}
    within = [one for one in modes if one.address.module not in before]
    yield from _by_module("forward", _outermost(within))
    switched = {one.address.module for one in modes}  # that such a module is another function follows
    for call in step.calls:
        if call.relation is not Relation.BORN or call.module in switched:
            continue
        span = step.spans[call.module, call.call]
        inside = [one for one in ordered if span.start < one.moment.event < span.end]
        handed = [one for one in inside if step.spans[key_of(one)].parent == (call.module, call.call)]
        # Own code that hands other inputs on shows first in these.
        own = [one for one in handed if one.moment == inside[0].moment and one.address.kind == Kind.INPUT]
        yield Root("forward", call.module, tuple(own) or (call.worst,))
    outputs = [one for one in step.tallies["forward"].findings if one.address.kind == Kind.MODEL_OUTPUT]
    if outputs and not found:
        yield Root("forward", "", tuple(outputs))
    # What the forward leaves behind, in a module of which every call is the same on both sides.
    called = {module for module, _ in found} | apart
    buffers = [one for one in step.tallies["weights"].findings if one.address.kind == Kind.BUFFER]
    yield from _by_module("forward", [one for one in buffers if one.address.module not in called])


def _of_update(step: StepFindings, apart: set[str | None]) -> Iterator[Root]:
    """Optimizer and schedule: settings, and what a parameter became though its gradient and its past are the same."""
    findings, gradients = step.tallies["weights"].findings, step.tallies["gradients"].findings
    given = step.tallies["optimizer_input"].findings
    clipped = [one for one in given if one.address.kind == Kind.APPLIED_GRADIENT]
    if clipped and not gradients:
        modules = {one.address.module for one in clipped}
        yield Root("clipping", modules.pop() if len(modules) == 1 else None, tuple(clipped))
    steps = [one for one in given if one.address.kind == Kind.UPDATE]  # made by one side alone
    state = [one for one in given if one.address.kind == Kind.OPTIMIZER_STATE and one.address.module not in apart]
    settings = [one for one in [*given, *findings] if one.address.kind == Kind.OPTIMIZER_SETTING]
    # Of a group of parameters that one side alone has, the rates are no schedule's doing.
    grouped = any(one.missing and not one.address.path.startswith("params.") for one in settings)
    schedules = [one for one in findings if one.address.kind == Kind.SCHEDULE and not (grouped and one.missing)]
    if steps or state:
        yield Root("optimizer", None, tuple(steps or state))
    if schedules:
        yield Root("schedule", None, tuple(schedules))
    scheduled = [one for one in settings if one.address.path in SCHEDULED and not one.missing]
    others = [one for one in settings if one not in scheduled]
    if others:
        yield Root("optimizer", None, tuple(others))
    if scheduled:
        yield Root("schedule", None, tuple(scheduled))
    moved = {_slot(one) for one in gradients if one.address.kind == Kind.GRADIENT}
    own = [
        one
        for one in findings
        if one.address.kind in _AFTER
        and one.moment.step != BEFORE_STEPS
        and _slot(one) not in moved
        and one.address.module not in apart
    ]
    if own and not (settings or clipped or steps or state):
        modules = {one.address.module for one in own}
        yield Root("optimizer", modules.pop() if len(modules) == 1 else None, tuple(own))
