"""Rung 8: gradients in the order in which backward reaches them.

The gradient that arrives at a module's output comes before what the module makes of it: the gradients of its own
parameters (complete once backward has passed everything inside it), and the gradient that arrives at whatever came
before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nest_ssl.compare.calls import Call, Key, key_of
from nest_ssl.compare.result import MISSING_CANDIDATE, MISSING_REFERENCE, Difference, Place, Tally
from nest_ssl.compare.structure import tensor_place
from nest_ssl.compare.values import Comparer, describe

Gradients = Mapping[str, Tensor | None]
_LAST = float("inf")


@dataclass(slots=True)
class BackwardResult:
    """What the localiser needs to know of one step's backward."""

    order: list[Key] = field(default_factory=list)  # calls, in the order in which a gradient reached their output
    differing_outputs: set[str] = field(default_factory=set)  # modules that were handed another output gradient
    watched: set[str] = field(default_factory=set)  # modules whose output gradient was recorded


def compare_output_gradients(tally: Tally, ours: list[Call], theirs: list[Call], comparer: Comparer) -> BackwardResult:
    """The gradient at every call's output; calls that only one side made are the forward's matter."""
    result = BackwardResult()
    candidates = {key_of(call): call for call in theirs}
    for call in sorted(ours, key=_position):
        other = candidates.get(key_of(call))
        if other is None or not (call["output_grads"] or other["output_grads"]):
            continue
        found = _compare_call(tally, call, other, comparer)
        tally.item("output gradients", found)
        result.order.append(key_of(call))
        result.watched.add(call["module"])
        result.differing_outputs |= {call["module"]} if found else set()
    return result


def compare_parameter_gradients(tally: Tally, ours: Gradients, theirs: Gradients, comparer: Comparer) -> None:
    """Every trained parameter's gradient; None must be None on both sides."""
    for name in dict.fromkeys([*ours, *theirs]):
        place = tensor_place(tally.rung, name, tally.step, tally.rank)
        if name not in theirs:
            tally.missing(place, MISSING_CANDIDATE, describe(ours[name]))
        elif name not in ours:
            tally.missing(place, MISSING_REFERENCE, describe(theirs[name]))
        else:
            found = comparer.leaf(place, ours[name], theirs[name])
            tally.item("parameter gradients", [found] if found else [])
    if not any(isinstance(gradient, Tensor) for gradient in [*ours.values(), *theirs.values()]):
        tally.absent.append(f"step {tally.step}: neither side has any gradient")


def sort_backward(tally: Tally, calls: list[Call]) -> None:
    """Put the differences in backward order, by the reference's `calls`."""
    arrived = {key_of(call): _position(call) for call in calls}
    last = _last_positions(calls)

    def moment(difference: Difference) -> tuple[float, int]:
        place = difference.place
        if place.call is not None:
            return arrived[place.module or "", place.call], 0
        return _complete(place.module or "", last), 1

    tally.differences.sort(key=moment)


def _compare_call(tally: Tally, call: Call, other: Call, comparer: Comparer) -> list[Difference]:
    ours, theirs, found = call["output_grads"], other["output_grads"], []
    for path in dict.fromkeys([*ours, *theirs]):
        name = f"output_grad.{path}" if path else "output_grad"
        place = Place(tally.rung, tally.step, call["module"], call["call"], name, tally.rank)
        if path not in theirs:
            found.append(Difference(place, MISSING_CANDIDATE, describe(ours[path]), "absent"))
        elif path not in ours:
            found.append(Difference(place, MISSING_REFERENCE, "absent", describe(theirs[path])))
        else:
            difference = comparer.leaf(place, ours[path], theirs[path])
            found += [difference] if difference else []
    return found


def _position(call: Call) -> float:
    return _LAST if call["grad_index"] is None else call["grad_index"]


def _last_positions(calls: list[Call]) -> dict[str, float]:
    """For each module, the last moment at which backward reached it or anything inside it."""
    last: dict[str, float] = {}
    for call in calls:
        if call["grad_index"] is None:
            continue
        name: str = call["module"]
        while True:
            last[name] = max(last.get(name, -1.0), call["grad_index"])
            if not name:
                break
            name = name.rpartition(".")[0]
    return last


def _complete(module: str, last: dict[str, Any]) -> float:
    """When the gradients of `module`'s own parameters are complete; by the nearest enclosing module reached."""
    while module and module not in last:
        module = module.rpartition(".")[0]
    return last.get(module, _LAST)
