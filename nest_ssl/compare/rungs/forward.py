"""Rung 6: every call of every module, in execution order, and what the model returned.

A call starts with its inputs and ends with its output. Calls nest, so a container ends after its children, and is to
blame only when nothing inside it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.findings import Difference, Finding
from nest_ssl.compare.rungs.sheet import Sheet, whole_numbers_first
from nest_ssl.compare.values import Measured, absent, flatten
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.calls import Call
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.reader import StepFiles

Key = tuple[str, int]  # module, k-th call of it in the step


def key_of(call: Call) -> Key:
    return call.module, call.call


@dataclass(frozen=True, slots=True)
class Span:
    """When a call of the reference ran, and within which other one; holds no tensor."""

    order: int  # by start
    start: int
    end: int
    parent: Key | None
    producers: dict[str, Key]  # of each input that another call returned, by its path


def compare_calls(sheet: Sheet, reference: Sequence[Call], candidate: Sequence[Call]) -> dict[Key, Span]:
    """Compare two steps call by call; inputs stand at the call's start, outputs at its end.

    Returns the spans of the reference's calls, in the order in which they started.
    """
    if not reference or not candidate:
        sheet.nothing("no_call", step=sheet.step)
    others = {key_of(call): call for call in candidate}
    measured: Measured = {}
    by_keyword = []
    for call in sorted(reference, key=lambda call: call.start):
        other = others.get(key_of(call))
        if other is None:
            spot = sheet.spot(Address(Kind.CALL, *key_of(call)), Phase.FORWARD, call.start)
            sheet.missing(spot.finding(Difference.MISSING_CANDIDATE, "called", "absent"))
            continue
        if len(call.args) != len(other.args):
            by_keyword.append(call.module)
        inputs = [*_compare_inputs(sheet, call, other, measured)]
        output = sheet.spot(Address(Kind.OUTPUT, *key_of(call)), Phase.FORWARD, call.end)
        outputs = sheet.comparer.nested(output, call.output, other.output, measured)
        sheet.item("calls", [*inputs, *outputs])
    known = {key_of(call) for call in reference}
    for call in candidate:
        if key_of(call) not in known:
            spot = sheet.spot(Address(Kind.CALL, *key_of(call)), Phase.FORWARD, math.inf)
            sheet.missing(spot.finding(Difference.MISSING_REFERENCE, "absent", "called"))
    if by_keyword:
        sheet.note("by_keyword", step=sheet.step, count=len(by_keyword), module=by_keyword[0])
    _note_order(sheet, reference, candidate)
    sheet.tally.findings.sort(key=lambda finding: finding.moment)
    return spans_of(reference)


def compare_forward_output(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """What the model returned, whole numbers (tokens, lengths) first."""
    if sheet.both_have(layout.FORWARD_OUTPUT, reference, candidate):
        one, other = whole_numbers_first(reference.forward_output()), candidate.forward_output()
        for name, output, other_output in pairs(one, other):
            spot = sheet.spot(Address(Kind.MODEL_OUTPUT, slot=name), Phase.FORWARD, math.inf)
            sheet.pair("outputs", spot, output, other_output)


def spans_of(calls: Sequence[Call]) -> dict[Key, Span]:
    keys = {call.index: key_of(call) for call in calls}
    spans: dict[Key, Span] = {}
    inside: list[Call] = []  # of which calls, innermost last
    for call in sorted(calls, key=lambda call: call.start):
        while inside and inside[-1].end < call.start:
            inside.pop()
        producers = {path: keys[index] for path, (index, _) in call.producers.items() if index in keys}
        parent = key_of(inside[-1]) if inside else None
        spans[key_of(call)] = Span(call.index, call.start, call.end, parent, producers)
        inside.append(call)
    return spans


def _compare_inputs(sheet: Sheet, call: Call, other: Call, measured: Measured) -> Iterator[Finding]:
    """Inputs under the reference's names, however they were passed, and the training flag."""
    one, two = call.inputs, _renamed(sheet, call, other)
    for name, a, b in pairs({**one, "training": call.training}, {**two, "training": other.training}):
        leaves = ({} if value is ABSENT else flatten(value) for value in (a, b))
        for path, leaf, other_leaf in pairs(*leaves):
            spot = sheet.spot(Address(Kind.INPUT, *key_of(call), name, path), Phase.FORWARD, call.start)
            if leaf is ABSENT or other_leaf is ABSENT:
                # None on one side and nothing on the other is a manner of calling.
                if leaf is not None and other_leaf is not None:
                    yield absent(spot, leaf, other_leaf)
            elif finding := sheet.comparer.leaf(spot, leaf, other_leaf, measured):
                yield finding


def _renamed(sheet: Sheet, call: Call, other: Call) -> dict[str, Any]:
    """The candidate's inputs; one passed by position on both sides goes by the reference's name for that position."""
    names = dict(zip(other.arg_names, call.arg_names, strict=False))
    renames = {n: m for n, m in names.items() if n not in call.inputs and m not in other.inputs}
    for name, twin in renames.items():
        values = {"module": call.module, "reference": twin, "candidate": name}
        if not any(note.kind == "input_names" and note.values == values for note in sheet.tally.notes):
            sheet.note("input_names", **values)
    return {renames.get(name, name): value for name, value in other.inputs.items()}


def _note_order(sheet: Sheet, reference: Sequence[Call], candidate: Sequence[Call]) -> None:
    """Another order of the same calls is no difference in numbers, but worth a line."""
    orders = [[key_of(call) for call in sorted(side, key=lambda call: call.start)] for side in (reference, candidate)]
    shared = set(orders[0]) & set(orders[1])
    for one, other in zip(*([key for key in order if key in shared] for order in orders), strict=True):
        if one != other:
            sheet.note("call_order", step=sheet.step, reference=one[0], candidate=other[0])
            return
