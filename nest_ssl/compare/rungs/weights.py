"""Rung 9: what a step left behind: buffers (changed in the forward), then the optimizer, then parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

from nest_ssl.compare.rungs.initial_weights import Kinds, compare_entries
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.reader import StepFiles


def compare_after_step(sheet: Sheet, reference: StepFiles, candidate: StepFiles, kinds: Kinds) -> None:
    weights = None
    if sheet.both_have(layout.WEIGHTS, reference, candidate):
        weights = reference.weights(), candidate.weights()
        _compare_kind(sheet, *weights, kinds, Kind.BUFFER)
    if sheet.both_have(layout.OPTIMIZER, reference, candidate):
        state, other_state = reference.optimizer_state(), candidate.optimizer_state()
        groups, other_groups = (  # which parameters a group holds counts, their order does not
            {str(i): {**group, "params": dict.fromkeys(group["params"], "member")} for i, group in enumerate(groups)}
            for groups in (state["param_groups"], other_state["param_groups"])
        )
        setting = partial(Address, Kind.OPTIMIZER_SETTING, None, None)
        sheet.table("optimizer groups", groups, other_groups, Phase.AFTER_STEP, setting)
        own = partial(of_entry, Kind.OPTIMIZER_STATE)
        sheet.table("optimizer states", state["state"], other_state["state"], Phase.AFTER_STEP, own)
    if weights:
        _compare_kind(sheet, *weights, kinds, Kind.PARAMETER)
        if not sheet.tally.compared["parameters"]:
            sheet.nothing("no_shared_weights", step=sheet.step)


def _compare_kind(sheet: Sheet, reference: dict[str, Any], candidate: dict[str, Any], kinds: Kinds, kind: Kind) -> None:
    one, other = ({n: v for n, v in s.items() if kinds.get(n, Kind.PARAMETER) == kind} for s in (reference, candidate))
    compare_entries(sheet, one, other, kinds, Phase.AFTER_STEP)
