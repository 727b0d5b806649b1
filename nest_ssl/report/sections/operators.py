"""The operators of calls that differ: what the reference alone runs, what the candidate alone, and other arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from nest_ssl.base.nested import ABSENT
from nest_ssl.compare.operators import Argument, Change, OperatorDifference
from nest_ssl.recording.evidence import Operator
from nest_ssl.report.document import Block, Code, CodeBlock, Heading, Paragraph, Text, join
from nest_ssl.report.words import counted, say, word
from nest_ssl.report.words.names import cut

LINES, NAMES, TENSORS = 40, 6, 6  # source lines of one call; names in a sentence; tensors of one operator
MARKS = {"missing": "-", "added": "+", "arguments": "~", "tensors": "~"}


def operators(differences: Sequence[OperatorDifference]) -> list[Block]:
    """Each call whose operators differ; calls with the same changes in the same lines are shown once."""
    alike: dict[object, list[OperatorDifference]] = {}
    for difference in differences:
        alike.setdefault(_signature(difference), []).append(difference)
    blocks: list[Block] = []
    for first, *others in alike.values():
        where, phase = call_name(first.module, first.call), word("operators.phase", first.phase)
        kinds = Counter(change.kind for change in first.changes)
        counts = join(say(f"operators.{kind}", count=number) for kind, number in kinds.items())
        same = say("operators.same", count=counted(first.same, "operators"))
        blocks.append(Heading(say("operators.heading", where=where, phase=phase), 3))
        blocks.append(Paragraph(join([counts, same], "; ")))
        for side, calls in (("reference", first.reference_calls), ("candidate", first.candidate_calls)):
            modules = dict.fromkeys(name.rpartition("#")[0] for name in calls)
            blocks += [Paragraph(say(f"operators.inside.{side}", modules=_some(map(Code, modules))))] if modules else []
        lines = _by_line(first.changes)
        blocks += [CodeBlock(tuple(line for each in lines[:LINES] for line in each))] if lines else []
        blocks += cut("operators.cut", LINES, lines)
        if others:
            names = _some(call_name(each.module, each.call) for each in others)
            blocks.append(Paragraph(say("operators.alike", count=counted(len(others), "calls"), calls=names)))
    return blocks


def operator_text(operator: Operator) -> str:
    """As a call: ``aten.constant_pad_nd.default([2, 48000] float32, pad=[256, 256], value=0.0)``."""
    shown = operator.tensors if len(operator.tensors) <= TENSORS else [counted(len(operator.tensors), "tensors")]
    return f"{operator.name}({', '.join([*shown, *(f'{n}={_plain(v)}' for n, v in operator.arguments.items())])})"


def call_name(module: str | None, call: int | None) -> Text:
    """```encoder.layers.0`, call 1```; a first call is not numbered."""
    if module is None:
        return say("operators.outside")
    return join([Code(module or word("name", "root")), say("call", call=call) if call else ()])


def _by_line(changes: Sequence[Change]) -> list[list[str]]:
    """Changes as lines of a diff: each source line with its text, and below it its operators, those of a loop once."""
    below: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for change in changes:
        operator = change.reference or change.candidate
        assert operator is not None
        shown = below.setdefault(_heads(change), {}).setdefault(operator.name, [])
        shown.append(operator_text(operator) if change.kind in ("missing", "added") else _other(change))
    lines = []
    for heads, found in below.items():
        texts = [f"{each[0]} x {len(each)}" if len(each) > 1 else each[0] for each in found.values()]
        if heads[0] == heads[0][:1]:  # of no source line
            lines.append([f"{heads[0]} {text}" for text in texts])
        else:
            lines.append([*heads, *(f"      {text}" for text in texts)])
    return lines


def _heads(change: Change) -> tuple[str, ...]:
    """The source lines of a change, those of two sides one below the other."""
    mark = MARKS[change.kind]
    places = [
        f"{each.source}: {text}".rstrip(": ") if each else ""
        for each, text in ((change.reference, change.reference_line), (change.candidate, change.candidate_line))
    ]
    if change.reference and change.candidate and places[0] != places[1]:
        return f"{mark} {places[0]}", f"  {places[1]}"
    return (f"{mark} {places[0] or places[1]}".rstrip(),)


def _other(change: Change) -> str:
    """What an operator is given on both sides."""
    one, other = change.reference, change.candidate
    assert one is not None and other is not None
    if change.arguments:
        given = [f"{name}={_plain(a)} -> {_plain(b)}" for name, (a, b) in change.arguments.items()]
    else:
        given = [
            f"{_plain(a)} -> {_plain(b)}"
            for a, b in ((one.tensors, other.tensors), (one.outputs, other.outputs))
            if a != b
        ]
    return f"{one.name}({', '.join(given)})"


def _plain(value: Argument | Sequence[str]) -> str:
    if value is ABSENT:
        return word("name", "absent")
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _some(names: Iterable[object]) -> Text:
    """The first few names."""
    found = list(names)
    return join([*found[:NAMES], *(["..."] if len(found) > NAMES else [])])


def _signature(difference: OperatorDifference) -> object:
    """What two calls share if they are to be shown once: their changes but for the shapes."""
    changes = []
    for change in difference.changes:
        sides = [(o.name, repr(o.arguments), o.source) for o in (change.reference, change.candidate) if o]
        changes.append((change.kind, *sides))
    calls = [tuple(name.rpartition("#")[0].rpartition(".")[2] for name in names)
             for names in (difference.reference_calls, difference.candidate_calls)]  # fmt: skip
    return difference.phase, tuple(changes), *calls
