"""Rung 9: what a step left behind: buffers (changed in the forward), then the optimizer, then parameters.

A parameter that differs is compared once more by its update, after minus before: at warm-up a whole update is smaller
than any tolerance of the parameter itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

from torch import Tensor, float64

from nest_ssl.compare.findings import Difference, Finding
from nest_ssl.compare.rungs.initial_weights import Kinds, compare_entries
from nest_ssl.compare.rungs.optimizer_input import IMPLEMENTATION, by_number
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.step_files import StepFiles

Tensors = dict[str, Tensor]


def compare_after_step(
    sheet: Sheet,
    reference: StepFiles,
    candidate: StepFiles,
    kinds: Kinds,
    gradients: Sequence[Finding] = (),
) -> None:
    """Compare buffers, optimizer and parameters.

    Args:
        kinds: what each name is.
        gradients: what was found in the gradients that the step was made with.
    """
    weights = None
    if sheet.both_have(layout.WEIGHTS, reference, candidate):
        weights = reference.weights(), candidate.weights()
        _compare_kind(sheet, *weights, kinds, Kind.BUFFER)
    if sheet.both_have(layout.OPTIMIZER, reference, candidate):
        state, other_state = reference.optimizer_state(), candidate.optimizer_state()
        flags = [
            [name for name in IMPLEMENTATION if any(group.get(name) for group in side["param_groups"])]
            for side in (state, other_state)
        ]
        if flags[0] != flags[1]:
            names = [", ".join(side) or "none of these" for side in flags]
            sheet.note("implementation", reference=names[0], candidate=names[1])
        groups, other_groups = by_number(state["param_groups"]), by_number(other_state["param_groups"])
        setting = partial(Address, Kind.OPTIMIZER_SETTING, None, None)
        sheet.table("optimizer groups", groups, other_groups, Phase.AFTER_STEP, setting)
        own = partial(of_entry, Kind.OPTIMIZER_STATE)
        sheet.table("optimizer states", state["state"], other_state["state"], Phase.AFTER_STEP, own)
    if weights:
        _compare_kind(sheet, *weights, kinds, Kind.PARAMETER)
        if not sheet.tally.compared["parameters"]:
            sheet.nothing("no_shared_weights", step=sheet.step)
        _compare_updates(sheet, (reference, candidate), weights, gradients)


def compare_schedules(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """What the learning-rate schedules say of themselves after the step: also what only later steps will meet."""
    facts, other_facts = reference.facts(), candidate.facts()
    if facts is None or other_facts is None:
        return
    for number, (one, other) in enumerate(zip_longest(facts.schedulers, other_facts.schedulers)):
        classes = ["none" if side is None else side.scheduler_class.rpartition(".")[2] for side in (one, other)]
        spot = sheet.spot(Address(Kind.SCHEDULE, slot=str(number), path="class"), Phase.SCHEDULE)
        if one is None or other is None:
            sheet.item("schedules", [spot.finding(Difference.SETTING, *classes)])
            continue
        if classes[0] != classes[1]:  # the name is its trainer's own matter
            sheet.note("schedule_class", reference=classes[0], candidate=classes[1])
        # What begins with an underscore is torch's own account, but for the rates of the next step.
        names = [n for n in one.state if n in other.state and (n == "_last_lr" or not n.startswith("_"))]
        state, other_state = ({name: side.state[name] for name in names} for side in (one, other))
        spot = sheet.spot(Address(Kind.SCHEDULE, slot=str(number)), Phase.SCHEDULE)
        sheet.item("schedules", sheet.comparer.nested(spot, state, other_state))


def _compare_kind(sheet: Sheet, reference: dict[str, Any], candidate: dict[str, Any], kinds: Kinds, kind: Kind) -> None:
    one, other = ({n: v for n, v in s.items() if kinds.get(n, Kind.PARAMETER) == kind} for s in (reference, candidate))
    compare_entries(sheet, one, other, kinds, Phase.AFTER_STEP)


def _compare_updates(
    sheet: Sheet, steps: tuple[StepFiles, StepFiles], after: tuple[Tensors, Tensors], gradients: Sequence[Finding]
) -> None:
    """Of each parameter that differs the update, in float64; none where a side does not know its weights before."""
    differing = [one for one in sheet.tally.findings if one.address.kind == Kind.PARAMETER and one.metrics]
    before = [step.start_weights() for step in steps] if differing else []
    apart = {(f.address.module, f.address.slot): f.metrics.relative for f in gradients if f.metrics}
    for finding in differing:
        name = ".".join(part for part in (finding.address.module, finding.address.slot) if part)
        updates = [
            new[name].to(float64) - old[name].to(float64)
            for old, new in zip(before, after, strict=True)
            if old is not None and name in old
        ]
        source = apart.get((finding.address.module, finding.address.slot)) or 0.0
        spot = sheet.spot(of_entry(Kind.UPDATE, name), Phase.AFTER_STEP)
        if len(updates) == 2 and finding.metrics:
            found = sheet.comparer.update(spot, updates[0], updates[1], finding.metrics, source)
            sheet.tally.findings += [found] if found else []
