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
from nest_ssl.recording.calls import Call, Producer
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.reader import StepFiles

Key = tuple[str, int]  # module, k-th call of it in the step


@dataclass(frozen=True, slots=True)
class Span:
    """When a call of the reference ran, and what it took from which other one; holds no tensor."""

    key: Key
    order: int  # by start
    start: int
    end: float
    parent: Key | None
    producers: dict[str, Producer]
    grad_event: int | None


def key_of(call: Call) -> Key:
    return call.module, call.call


def spans_of(calls: Sequence[Call]) -> dict[Key, Span]:
    """The spans of one side's calls, in the order in which they started."""
    spans: dict[Key, Span] = {}
    open_: list[Span] = []
    for call in sorted(calls, key=lambda call: call.start):
        while open_ and open_[-1].end < call.start:
            open_.pop()
        end = call.end if call.end >= 0 else call.start  # one that never ended holds nothing inside
        parent = open_[-1].key if open_ else None
        span = Span(key_of(call), call.index, call.start, end, parent, call.producers, call.grad_event)
        spans[span.key] = span
        open_.append(span)
    return spans


def compare_calls(sheet: Sheet, reference: Sequence[Call], candidate: Sequence[Call]) -> None:
    """Compare two steps call by call; inputs stand at the call's start, outputs at its end."""
    others = {key_of(call): call for call in candidate}
    measured: Measured = {}
    by_keyword = []
    for call in sorted(reference, key=lambda call: call.start):
        other = others.get(key_of(call))
        if other is None:
            spot = sheet.spot(_address(sheet, Kind.CALL, call), Phase.FORWARD, call.start)
            sheet.missing(spot.finding(Difference.MISSING_CANDIDATE, "called", "absent"))
            continue
        if len(call.args) != len(other.args):
            by_keyword.append(call.module)
        inputs = [*_compare_inputs(sheet, call, other, measured)]
        end = call.end if call.end >= 0 else call.start
        output = sheet.spot(_address(sheet, Kind.OUTPUT, call), Phase.FORWARD, end)
        outputs = sheet.comparer.nested(output, call.output, other.output, measured)
        sheet.item("calls", [*inputs, *outputs])
    known = {key_of(call) for call in reference}
    for call in candidate:
        if key_of(call) not in known:
            spot = sheet.spot(_address(sheet, Kind.CALL, call), Phase.FORWARD, math.inf)
            sheet.missing(spot.finding(Difference.MISSING_REFERENCE, "absent", "called"))
    if by_keyword:
        sheet.note("by_keyword", step=sheet.step, count=len(by_keyword), module=by_keyword[0])
    _note_order(sheet, reference, candidate)
    sheet.tally.findings.sort(key=lambda finding: finding.moment)


def compare_forward_output(sheet: Sheet, reference: StepFiles, candidate: StepFiles) -> None:
    """What the model returned, whole numbers (tokens, lengths) first."""
    if sheet.both_have(layout.FORWARD_OUTPUT, reference, candidate):
        sheet.table(
            "outputs",
            whole_numbers_first(reference.forward_output()),
            candidate.forward_output(),
            lambda name: sheet.spot(
                Address(Kind.MODEL_OUTPUT, slot=name, rank=sheet.rank), Phase.FORWARD, math.inf
            ),
        )


def _address(sheet: Sheet, kind: Kind, call: Call, slot: str = "", path: str = "") -> Address:
    return Address(kind, call.module, call.call, slot, path, sheet.rank)


def _compare_inputs(sheet: Sheet, call: Call, other: Call, measured: Measured) -> Iterator[Finding]:
    """Inputs under the reference's names, however they were passed, and the training flag."""
    one, two = call.inputs, _renamed(sheet, call, other)
    for name, a, b in pairs({**one, "training": call.training}, {**two, "training": other.training}):
        leaves = ({} if value is ABSENT else flatten(value) for value in (a, b))
        for path, leaf, other_leaf in pairs(*leaves):
            spot = sheet.spot(_address(sheet, Kind.INPUT, call, name, path), Phase.FORWARD, call.start)
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
