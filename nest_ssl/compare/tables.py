"""Rungs that compare tables of named values: initial weights, batch, loss, weights and optimizer after the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from nest_ssl.compare.result import MISSING_CANDIDATE, MISSING_REFERENCE, Place, Tally
from nest_ssl.compare.structure import tensor_place
from nest_ssl.compare.values import Comparer, describe, flatten
from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import Recording, StepFiles

Table = Mapping[str, Any]
PlaceOf = Callable[[str], Place]


def compare_initial_weights(reference: Recording, candidate: Recording, comparer: Comparer) -> Tally:
    """Parameters and buffers before the first step, in the reference's order: the first difference is the first built.

    A difference here also shows in the draws of the model's construction, which says how many numbers it took.
    """
    tally = Tally("initial_weights")
    comparer.forget()
    units = units_of(reference, candidate)
    compare_table(tally, units, reference.initial_weights(), candidate.initial_weights(), comparer)
    if not tally.compared["parameters"]:
        tally.absent.append("the recordings share no initial parameter")
    return tally


def compare_batch(tally: Tally, reference: StepFiles, candidate: StepFiles, comparer: Comparer) -> None:
    """Every field of the batch, whole numbers (the lengths) first."""
    if not both_have(tally, files.BATCH, reference, candidate):
        return
    comparer.forget()
    ours, theirs = (flatten(step.batch(), "") for step in (reference, candidate))
    ordered = {name: ours[name] for name in sorted(ours, key=lambda name: _is_float(ours[name]))}
    compare_table(tally, "fields", ordered, theirs, comparer, _whole_name(tally))
    _need_tensor(tally, ours, theirs)


def compare_forward_output(tally: Tally, reference: StepFiles, candidate: StepFiles, comparer: Comparer) -> None:
    """What the model returned, whole numbers (tokens, lengths) first."""
    if both_have(tally, files.FORWARD_OUTPUT, reference, candidate):
        comparer.forget()
        ours, theirs = reference.forward_output(), candidate.forward_output()
        ordered = {name: ours[name] for name in sorted(ours, key=lambda name: _is_float(ours[name]))}
        compare_table(tally, "outputs", ordered, theirs, comparer, _whole_name(tally))


def compare_loss(tally: Tally, reference: StepFiles, candidate: StepFiles, comparer: Comparer) -> None:
    if both_have(tally, files.LOSS, reference, candidate):
        comparer.forget()
        ours, theirs = reference.loss(), candidate.loss()
        compare_table(tally, "losses", ours, theirs, comparer, _whole_name(tally))
        _need_tensor(tally, ours, theirs)


def compare_after_step(
    tally: Tally, reference: StepFiles, candidate: StepFiles, comparer: Comparer, units: Mapping[str, str]
) -> None:
    """Buffers (changed in the forward), then the optimizer's settings and state, then parameters."""
    weights = None
    if both_have(tally, files.WEIGHTS, reference, candidate):
        weights = reference.weights(), candidate.weights()
        comparer.forget()
        compare_table(tally, "buffers", *_of_kind("buffers", units, *weights), comparer)
    if both_have(tally, files.OPTIMIZER, reference, candidate):
        _compare_optimizer(tally, reference.optimizer_state(), candidate.optimizer_state(), comparer)
    if weights:
        comparer.forget()
        compare_table(tally, "parameters", *_of_kind("parameters", units, *weights), comparer)
        if not tally.compared["parameters"]:
            tally.absent.append(f"step {tally.step}: the recordings share no parameter after the step")


# --- shared -----------------------------------------------------------------------------------------------------------


def compare_table(
    tally: Tally,
    unit: str | Mapping[str, str],
    ours: Table,
    theirs: Table,
    comparer: Comparer,
    place_of: PlaceOf | None = None,
) -> None:
    """Two tables of named values, in the reference's order; `unit` names what is counted, or the unit of each name."""
    place_of = place_of or (lambda name: tensor_place(tally.rung, name, tally.step, tally.rank))
    for name in dict.fromkeys([*ours, *theirs]):
        if name not in theirs:
            tally.missing(place_of(name), MISSING_CANDIDATE, describe(ours[name]))
        elif name not in ours:
            tally.missing(place_of(name), MISSING_REFERENCE, describe(theirs[name]))
        else:
            kind = unit if isinstance(unit, str) else unit.get(name, "others")
            tally.item(kind, comparer.nested(place_of(name), ours[name], theirs[name]))


def both_have(tally: Tally, name: str, reference: StepFiles, candidate: StepFiles) -> bool:
    """Whether both recorded this file of the step; what is lacking goes to `tally`."""
    for step, side, kind in ((reference, "reference", MISSING_REFERENCE), (candidate, "candidate", MISSING_CANDIDATE)):
        if not step.has(name):
            tally.lacking(kind, 1, f"step {tally.step}: the {side} has no {name}")
    return reference.has(name) and candidate.has(name)


def units_of(reference: Recording, candidate: Recording) -> dict[str, str]:
    """For each name in either structure, whether it is among the ``parameters`` or the ``buffers``."""
    return {
        entry["name"]: kind
        for recording in (candidate, reference)
        for kind in ("parameters", "buffers")
        for entry in recording.structure[kind]
    }


def _whole_name(tally: Tally) -> PlaceOf:
    return lambda name: Place(tally.rung, tally.step, None, None, name, tally.rank)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _need_tensor(tally: Tally, ours: Table, theirs: Table) -> None:
    shared = [name for name in ours if name in theirs]
    if not any(isinstance(ours[name], Tensor) or isinstance(theirs[name], Tensor) for name in shared):
        tally.absent.append(f"step {tally.step}: no tensor to compare ({tally.rung})")


def _of_kind(kind: str, units: Mapping[str, str], *tables: Table) -> list[Table]:
    """Of each table the entries of one kind; what no structure lists counts as a parameter."""
    return [{n: value for n, value in table.items() if units.get(n, "parameters") == kind} for table in tables]


def _compare_optimizer(tally: Tally, ours: Table, theirs: Table, comparer: Comparer) -> None:
    comparer.forget()
    groups = [{f"param_groups.{i}": _group(g) for i, g in enumerate(side["param_groups"])} for side in (ours, theirs)]
    compare_table(tally, "optimizer groups", *groups, comparer, _whole_name(tally))
    compare_table(tally, "optimizer states", ours["state"], theirs["state"], comparer)


def _group(group: Table) -> dict[str, Any]:
    """A parameter group; which parameters it holds counts, their order does not."""
    return {**group, "params": dict.fromkeys(group["params"], "member")}
