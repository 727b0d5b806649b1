"""Rung 9: what a step left behind: buffers (changed in the forward), then the optimizer, then parameters.

A parameter that differs is compared once more by its update, after minus before: at warm-up a whole update is smaller
than any tolerance of the parameter itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, float64

from nest_ssl.compare.findings import Finding
from nest_ssl.compare.rungs.initial_weights import Kinds, compare_entries
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.reader import Recording, StepFiles

Tensors = dict[str, Tensor]


def weights_before(recording: Recording, step: int, rank: int = 0) -> Tensors | None:
    """Parameters and buffers at the start of a step; None where they are not known."""
    first = recording.index.resumed_from.batches if recording.index.resumed_from else 0
    if step == first:
        return recording.initial_weights()
    earlier = recording.step(step - 1, rank)
    return earlier.weights() if earlier.has(layout.WEIGHTS) else None


def compare_after_step(
    sheet: Sheet,
    reference: StepFiles,
    candidate: StepFiles,
    kinds: Kinds,
    before: tuple[Tensors | None, Tensors | None] = (None, None),
    gradients: Sequence[Finding] = (),
) -> None:
    """Compare buffers, optimizer and parameters.

    Args:
        kinds: what each name is.
        before: weights at the start of the step on both sides; without them no update is known.
        gradients: what was found in the gradients that the step was made with.
    """
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
        if before[0] is not None and before[1] is not None:
            _compare_updates(sheet, (before[0], weights[0]), (before[1], weights[1]), gradients)


def _compare_kind(sheet: Sheet, reference: dict[str, Any], candidate: dict[str, Any], kinds: Kinds, kind: Kind) -> None:
    one, other = ({n: v for n, v in s.items() if kinds.get(n, Kind.PARAMETER) == kind} for s in (reference, candidate))
    compare_entries(sheet, one, other, kinds, Phase.AFTER_STEP)


def _compare_updates(
    sheet: Sheet, reference: tuple[Tensors, Tensors], candidate: tuple[Tensors, Tensors], gradients: Sequence[Finding]
) -> None:
    """Of each parameter that differs the update, in float64: (before, after) of both sides."""
    apart = {(f.address.module, f.address.slot): f.metrics.relative for f in gradients if f.metrics}
    for finding in [one for one in sheet.tally.findings if one.address.kind == Kind.PARAMETER and one.metrics]:
        name = ".".join(part for part in (finding.address.module, finding.address.slot) if part)
        if not all(name in table for table in (*reference, *candidate)):
            continue
        spot = sheet.spot(of_entry(Kind.UPDATE, name), Phase.AFTER_STEP)
        updates = [side[1][name].to(float64) - side[0][name].to(float64) for side in (reference, candidate)]
        source = apart.get((finding.address.module, finding.address.slot)) or 0.0
        if updates[0].shape == updates[1].shape and (found := sheet.comparer.update(spot, *updates, source)):
            sheet.tally.findings.append(found)
