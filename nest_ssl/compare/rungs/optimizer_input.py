"""What the optimizer works with: gradients after clipping, the settings of its groups, the state that it goes on from.

Gradients that nothing changed since backward, or that one factor explains on both sides, are the rung of gradients'
matter; here stand the factor and those that were changed in any other way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from nest_ssl.compare.findings import Difference
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.contents import AppliedGradients
from nest_ssl.recording.step_files import StepFiles

Groups = list[dict[str, Any]]
IMPLEMENTATION = ("foreach", "fused", "capturable")  # settings that choose how an optimizer computes, not what


def compare_optimizer_input(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """Compare where both sides recorded it; that only one of them made a step is a difference."""
    if reference.facts() is None or candidate.facts() is None:
        return
    groups, other_groups = reference.start_groups(), candidate.start_groups()
    setting = partial(Address, Kind.OPTIMIZER_SETTING, None, None)
    if groups is None or other_groups is None:
        if any(side.of_operators_alone for side in (reference, candidate)):
            return  # it has none of them, whatever step was made
        made = ["no step" if side is None else "a step" for side in (groups, other_groups)]
        spot = sheet.spot(Address(Kind.UPDATE), Phase.OPTIMIZER_INPUT)
        sheet.item("steps", [spot.finding(Difference.SETTING, *made)] if made[0] != made[1] else [])
        return
    used, other_used = reference.applied_gradients(), candidate.applied_gradients()
    if used and other_used:
        _compare_gradients(sheet, used, other_used)
    sheet.table("optimizer groups", by_number(groups), by_number(other_groups), Phase.OPTIMIZER_INPUT, setting)
    changes, other_changes = reference.changed(layout.OPTIMIZER_START), candidate.changed(layout.OPTIMIZER_START)
    if changes == [] and other_changes == []:
        return  # it is what the step before left
    state, other_state = reference.start_optimizer_state(), candidate.start_optimizer_state()
    if state is None or other_state is None:
        return
    if changes is not None and other_changes is not None:
        names = {*changes, *other_changes} | (state.keys() ^ other_state.keys())
        state, other_state = ({n: t for n, t in side.items() if n in names} for side in (state, other_state))
    own = partial(of_entry, Kind.OPTIMIZER_STATE)
    sheet.table("optimizer states", state, other_state, Phase.OPTIMIZER_INPUT, own)


def by_number(groups: Groups) -> dict[str, dict[str, Any]]:
    """What counts of parameter groups, by number: the order of the parameters in one does not."""
    return {
        str(number): {
            **{name: value for name, value in group.items() if name not in IMPLEMENTATION},
            "params": dict.fromkeys(group["params"], "member"),
        }
        for number, group in enumerate(groups)
    }


def _compare_gradients(sheet: Sheet, reference: AppliedGradients, candidate: AppliedGradients) -> None:
    if reference.factor is not None or candidate.factor is not None:
        spot = sheet.spot(Address(Kind.APPLIED_GRADIENT, slot="factor"), Phase.OPTIMIZER_INPUT)
        factors = (  # 1 where no gradient was changed
            torch.ones_like(side.norm)
            if side.factor is None and side.norm is not None and not side.edited
            else side.factor
            for side in (reference, candidate)
        )
        sheet.pair("factors of gradients", spot, *factors)
    otherwise = {*reference.edited, *candidate.edited, *(set(reference.scaled) ^ set(candidate.scaled))}
    if not reference.scaled or not candidate.scaled:  # the factor says it
        otherwise = {*reference.edited, *candidate.edited}
    one, other = ({n: g for n, g in side.gradients.items() if n in otherwise} for side in (reference, candidate))
    own = partial(of_entry, Kind.APPLIED_GRADIENT)
    sheet.table("applied gradients", one, other, Phase.OPTIMIZER_INPUT, own)
