"""Rung 6: every call of every module, in execution order.

A step is a sequence of events: a call starts with its inputs, and ends with its output. The first event that is not the
same on both sides is where the trajectories part. Calls nest, so a container ends after its children, and is to blame
only when nothing inside it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nest_ssl.compare.result import MISSING_CANDIDATE, MISSING_REFERENCE, Difference, Place, Tally
from nest_ssl.compare.values import Comparer, at, describe, flatten

Call = dict[str, Any]
Key = tuple[str, int]  # module, k-th call of it in the step
START, END = 0, 1


@dataclass(slots=True)
class CallResult:
    """One call of the reference against the same call of the candidate."""

    module: str
    call: int
    order: int  # by start, in the reference
    parent: Key | None
    start: int = 0  # positions in the timeline of events
    end: int = 0
    inputs: list[Difference] = field(default_factory=list)
    outputs: list[Difference] = field(default_factory=list)
    lacking: Difference | None = None  # the candidate has no such call
    restyled: bool = False  # what one side passes by position, the other passes by keyword

    @property
    def key(self) -> Key:
        return self.module, self.call


@dataclass(slots=True)
class ForwardResult:
    """The reference's calls of one step by key, in the order in which they started."""

    calls: dict[Key, CallResult]


def key_of(call: Call) -> Key:
    return call["module"], call["call"]


def timeline(calls: list[Call]) -> Iterator[tuple[int, Call, Call | None]]:
    """(START or END, call, enclosing call) for `calls` of one side, in the order in which it happened."""
    still_open: list[Call] = []
    for call in sorted(calls, key=lambda call: call["index"]):
        while still_open and still_open[-1]["end_index"] < call["end_index"]:
            yield END, still_open.pop(), still_open[-1] if still_open else None
        yield START, call, still_open[-1] if still_open else None
        still_open.append(call)
    while still_open:
        yield END, still_open.pop(), still_open[-1] if still_open else None


def compare_calls(tally: Tally, ours: list[Call], theirs: list[Call], comparer: Comparer) -> ForwardResult:
    """Compare two steps call by call; differences go to `tally` in the order in which they happened."""
    candidates = {key_of(call): call for call in theirs}
    result = ForwardResult({})
    for position, (event, call, parent) in enumerate(timeline(ours)):
        key = key_of(call)
        other = candidates.get(key)
        if event == START:
            judged = CallResult(*key, call["index"], key_of(parent) if parent else None, start=position)
            result.calls[key] = judged
            _start(tally, judged, call, other, comparer)
        else:
            result.calls[key].end = position
            _end(tally, result.calls[key], call, other, comparer)
    _note_extra(tally, result, theirs)
    _note_style(tally, result)
    _note_order(tally, result, theirs)
    return result


def _start(tally: Tally, judged: CallResult, call: Call, other: Call | None, comparer: Comparer) -> None:
    place = _place(tally, judged.key, None)
    if other is None:
        tally.missing(place, MISSING_CANDIDATE, "called")
        judged.lacking = tally.differences[-1]
        return
    judged.restyled = len(call["args"]) != len(other["args"])
    ours, theirs = _same_names(tally, call, other)
    for path, reference, candidate in _paired(ours, theirs):
        found = _compare_input(at(place, path), reference, candidate, comparer)
        judged.inputs += [found] if found else []
    tally.differences += judged.inputs


def _end(tally: Tally, judged: CallResult, call: Call, other: Call | None, comparer: Comparer) -> None:
    if other is None:
        return
    judged.outputs = comparer.nested(_place(tally, judged.key, "output"), call["output"], other["output"])
    tally.item("calls", judged.outputs)
    tally.differing += bool(judged.inputs and not judged.outputs)


def _same_names(tally: Tally, call: Call, other: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of both sides, under the reference's names where both passed them by position."""
    ours, theirs = bind_inputs(call), bind_inputs(other)
    for name in [name for name in theirs if name not in ours]:
        twin = _same_position(call, other, name, ours)
        if twin:
            theirs[twin] = theirs.pop(name)
            _note_once(
                tally, f"`{call['module']}` names an input `{twin}` in the reference, `{name}` in the candidate."
            )
    ours["training"], theirs["training"] = call.get("training"), other.get("training")
    return ours, theirs


class _Missing:
    """Stands for an input that one side did not pass."""


_ABSENT = _Missing()


def _paired(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    reference, candidate = _flat_inputs(ours), _flat_inputs(theirs)
    for path in dict.fromkeys([*reference, *candidate]):
        yield path, reference.get(path, _ABSENT), candidate.get(path, _ABSENT)


def _flat_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {path: leaf for name, value in inputs.items() for path, leaf in flatten(value, f"inputs.{name}").items()}


def _compare_input(place: Place, reference: Any, candidate: Any, comparer: Comparer) -> Difference | None:
    """An explicit None on one side and nothing on the other is a manner of calling; anything else must be on both."""
    if reference is _ABSENT:
        return None if candidate is None else Difference(place, MISSING_REFERENCE, "absent", describe(candidate))
    if candidate is _ABSENT:
        return None if reference is None else Difference(place, MISSING_CANDIDATE, describe(reference), "absent")
    return comparer.leaf(place, reference, candidate)


def bind_inputs(call: Call) -> dict[str, Any]:
    """Inputs by parameter name, however they were passed."""
    return {**dict(zip(call["arg_names"], call["args"], strict=True)), **call["kwargs"]}


def _same_position(call: Call, other: Call, name: str, ours: dict[str, Any]) -> str | None:
    """The reference's name for the candidate's positional input `name`, where both passed it by position."""
    position = other["arg_names"].index(name) if name in other["arg_names"] else len(call["args"])
    if position >= len(call["args"]):
        return None
    twin = call["arg_names"][position]
    return twin if twin in ours and twin not in bind_inputs(other) else None


def _note_extra(tally: Tally, result: ForwardResult, theirs: list[Call]) -> None:
    for call in theirs:
        key = key_of(call)
        if key not in result.calls:
            tally.missing(_place(tally, key, None), MISSING_REFERENCE, "called")


def _note_style(tally: Tally, result: ForwardResult) -> None:
    restyled = [judged for judged in result.calls.values() if judged.restyled]
    if restyled:
        tally.notes.append(
            f"Step {tally.step}: {len(restyled):,} calls pass by keyword what the other side passes by position, "
            f"first `{restyled[0].module}`."
        )


def _note_order(tally: Tally, result: ForwardResult, theirs: list[Call]) -> None:
    """Another order of the same calls is no difference in numbers, but worth a line."""
    order = [key_of(call) for call in sorted(theirs, key=lambda call: call["index"]) if key_of(call) in result.calls]
    expected = [key for key, judged in result.calls.items() if not judged.lacking]
    for mine, yours in zip(expected, order, strict=False):
        if mine != yours:
            tally.notes.append(
                f"Step {tally.step}: modules are called in another order, first `{mine[0]}` against `{yours[0]}`."
            )
            return


def _note_once(tally: Tally, note: str) -> None:
    if note not in tally.notes:
        tally.notes.append(note)


def _place(tally: Tally, key: Key, tensor: str | None) -> Place:
    return Place(tally.rung, tally.step, key[0], key[1], tensor, tally.rank)
