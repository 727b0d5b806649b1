"""Rung 8: gradients in the order in which backward reaches them.

The gradient that arrives at a module's output comes before what the module makes of it: the gradients of its own
parameters (complete once backward has passed everything inside it), and the gradient that arrives at whatever came
before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.findings import Difference
from nest_ssl.compare.rungs.forward import Key, key_of
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.values import Measured
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.calls import Call
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.step_files import StepFiles


def compare_output_gradients(sheet: Sheet, reference: Sequence[Call], candidate: Sequence[Call]) -> list[Key]:
    """The gradient at every call's output; a call that only one side made is the forward's matter.

    Returns the calls that have one, in the order in which backward reached them.
    """
    others = {key_of(call): call for call in candidate}
    measured: Measured = {}
    reached = []
    for call in sorted(reference, key=_event):
        other = others.get(key_of(call))
        if other is None or not (call.output_grads or other.output_grads):
            continue
        spot = sheet.spot(Address(Kind.OUTPUT_GRADIENT, call.module, call.call), Phase.GRADIENTS, _event(call))
        found = sheet.comparer.leaves(spot, call.output_grads, other.output_grads, measured)
        sheet.item("output gradients", found)
        reached.append(key_of(call))
    return reached


def compare_gradients_before(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """What ``.grad`` held when backward began: nothing (None or zeros are the same there) or gradients of before.

    Gradients of before that are not the same are a matter of the step that made them, where that was recorded; they
    count here if they were the same when it was over.
    """
    before, other_before = reference.gradients_before(), candidate.gradients_before()
    if before is None or other_before is None:
        return
    left, other_left = reference.left_gradients(), candidate.left_gradients()
    for name, held, other_held in pairs(before, other_before):
        spot = sheet.spot(of_entry(Kind.GRADIENT_BEFORE, name), Phase.BACKWARD)
        if held is ABSENT or other_held is ABSENT:
            continue  # a parameter that only one side trains is the structure's matter
        said = ["nothing" if value in (None, "zero") else "gradients" for value in (held, other_held)]
        edited = said[0] == said[1] and held != other_held and name in left and left[name] == other_left.get(name)
        differs = said[0] != said[1] or (edited and said[0] == "gradients")
        values = (held, other_held) if edited else said
        sheet.item("gradients before", [spot.finding(Difference.SETTING, *values)] if differs else [])


def compare_parameter_gradients(
    sheet: Sheet, reference: StepFiles, candidate: StepFiles, calls: Sequence[Call]
) -> None:
    """Every trained parameter's gradient; None must be None on both sides."""
    if not sheet.both_have(layout.GRADIENTS, reference, candidate):
        return
    last: dict[str, float] = {}  # when backward last reached a module or anything inside it
    for call in calls:
        parts = call.module.split(".") if call.module else []
        for depth in range(len(parts) + 1) if call.grad_event is not None else ():
            name = ".".join(parts[:depth])
            last[name] = max(last.get(name, -1.0), _event(call))
    one, other = reference.gradients(), candidate.gradients()
    for name, gradient, other_gradient in pairs(one, other):
        address = of_entry(Kind.GRADIENT, name)
        module = address.module or ""
        while module and module not in last:
            module = module.rpartition(".")[0]
        # Complete after what backward reached last of the module, or of the nearest one around it that it reached.
        spot = sheet.spot(address, Phase.GRADIENTS, last.get(module, math.inf) + 0.5)
        sheet.pair("parameter gradients", spot, gradient, other_gradient)
    if not any(isinstance(gradient, Tensor) for gradient in [*one.values(), *other.values()]):
        sheet.nothing("no_gradient", step=sheet.step)
    sheet.tally.findings.sort(key=lambda finding: finding.moment)


def _event(call: Call) -> float:
    return math.inf if call.grad_event is None else call.grad_event
