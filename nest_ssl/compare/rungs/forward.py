"""Rung 6: every call of every module, in execution order, and what the model returned.

A call starts with its inputs and ends with its output. Calls nest, so a container ends after its children, and is to
blame only when nothing inside it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.findings import Difference, Finding
from nest_ssl.compare.rungs.sheet import Sheet, whole_numbers_first
from nest_ssl.compare.values import Measured, absent, flatten
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.calls import Call
from nest_ssl.recording.clock import Phase
from nest_ssl.recording.step_files import StepFiles

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
    one, two = ({key_of(call): call for call in sorted(s, key=lambda c: c.start)} for s in (reference, candidate))
    measured: Measured = {}
    by_keyword = []
    for key, call, other in pairs(one, two):
        if call is ABSENT:
            spot = sheet.spot(Address(Kind.CALL, *key), Phase.FORWARD, math.inf)
            sheet.missing(spot.finding(Difference.MISSING_REFERENCE, "absent", "called"))
        elif other is ABSENT:
            spot = sheet.spot(Address(Kind.CALL, *key), Phase.FORWARD, call.start)
            sheet.missing(spot.finding(Difference.MISSING_CANDIDATE, "called", "absent"))
        else:
            if len(call.args) != len(other.args):
                by_keyword.append(call.module)
            inputs = [*_compare_inputs(sheet, call, other, measured)]
            output = sheet.spot(Address(Kind.OUTPUT, *key), Phase.FORWARD, call.end)
            sheet.item("calls", inputs + sheet.comparer.nested(output, call.output, other.output, measured))
    if by_keyword:
        sheet.note("by_keyword", step=sheet.step, count=len(by_keyword), module=by_keyword[0])
    orders = [key for key in one if key in two], [key for key in two if key in one]
    moved = next(((key, other_key) for key, other_key in zip(*orders, strict=True) if key != other_key), None)
    if moved:  # another order of the same calls is no difference in numbers, but worth a line
        sheet.note("call_order", step=sheet.step, reference=moved[0][0], candidate=moved[1][0])
    spans = spans_of(reference)
    _excuse_other_modules(sheet, spans, spans_of(candidate))
    sheet.tally.findings.sort(key=lambda finding: finding.moment)
    return spans


def _excuse_other_modules(sheet: Sheet, reference: dict[Key, Span], candidate: dict[Key, Span]) -> None:
    """Calls that only one side makes, inside of one that both make and that agrees: the same, computed otherwise.

    One product in place of three, or a function in place of a module. The output of the innermost call around it that
    both make decides.
    """
    found = sheet.tally.findings
    apart = {
        (one.address.module, one.address.call) for one in found if one.address.kind == Kind.OUTPUT and not one.within
    }
    excused = []
    for finding in [one for one in found if one.address.kind == Kind.CALL and one.missing]:
        spans = reference if finding.difference == Difference.MISSING_CANDIDATE else candidate
        key: Key | None = (finding.address.module or "", finding.address.call or 0)
        while key is not None and not (key in reference and key in candidate):
            key = spans[key].parent
        if key is not None and key not in apart:
            excused.append((finding, key))
            sheet.tally.missing_reference -= finding.difference == Difference.MISSING_REFERENCE
            sheet.tally.missing_candidate -= finding.difference == Difference.MISSING_CANDIDATE
    if excused:
        sheet.tally.findings = [one for one in found if not any(one is finding for finding, _ in excused)]
        first, key = excused[0]
        values = {"module": first.address.module, "around": key[0] or "(root)", "count": len(excused)}
        sheet.note("computed_otherwise", step=sheet.step, **values)


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
    """The module's mode and its inputs; one passed by position on both sides goes by the reference's name for it."""
    names = dict(zip(other.arg_names, call.arg_names, strict=False))
    renames = {n: m for n, m in names.items() if n not in call.inputs and m not in other.inputs}
    for name, twin in renames.items():
        values = {"module": call.module, "reference": twin, "candidate": name}
        if not any(note.kind == "input_names" and note.values == values for note in sheet.tally.notes):
            sheet.note("input_names", **values)
    renamed = {renames.get(name, name): value for name, value in other.inputs.items()}
    if call.training is not other.training:
        spot = sheet.spot(Address(Kind.MODULE, *key_of(call), "training"), Phase.FORWARD, call.start)
        yield spot.finding(Difference.SETTING, call.training, other.training)
    for name, a, b in pairs(call.inputs, renamed):
        leaves = ({} if value is ABSENT else flatten(value) for value in (a, b))
        for path, leaf, other_leaf in pairs(*leaves):
            spot = sheet.spot(Address(Kind.INPUT, *key_of(call), name, path), Phase.FORWARD, call.start)
            if leaf is ABSENT or other_leaf is ABSENT:
                # None on one side and nothing on the other is a manner of calling.
                if leaf is not None and other_leaf is not None:
                    yield absent(spot, leaf, other_leaf)
            elif finding := sheet.comparer.leaf(spot, leaf, other_leaf, measured):
                yield finding
