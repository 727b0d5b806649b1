"""The operators of two sides, call by call: what both run, what one alone runs, and what is given other arguments.

    differences = diff(reference.step(0).operators(), candidate.step(0).operators(), ["encoder.pre_encode*"])

Calls are paired by where they are made: the same module, called the same time by the same call. An operator of a call
that the other side does not make, as where one module does what several did, counts for the innermost call around it
that both make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import ABSENT, Absent, pairs
from nest_ssl.base.spelling import did_you_mean
from nest_ssl.compare.alignment import Tokens, aligned, tokens
from nest_ssl.recording.evidence import Operator, Operators, StepOperators, read_evidence, seal_of
from nest_ssl.recording.index import Scalar
from nest_ssl.recording.layout import OPERATORS
from nest_ssl.recording.reader import Recording, open_recording

Phase = Literal["forward", "backward", "optimizer"]
Argument = Scalar | list[Scalar] | Literal[Absent.ABSENT]
# A call as a path from the outermost: of each the module, and its number among that module's calls in the one around
# it. Empty: outside of all modules. A number of None: what belongs to a module, and to no call of it.
CallPath = tuple[tuple[str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One operator that is not the same on both sides.

    Args:
        kind: ``missing``: the reference alone runs it; ``added``: the candidate alone; ``arguments``: both do, given
            other arguments; ``tensors``: the same arguments, tensors of another shape or type.
        arguments: those that differ, by name: the reference's and the candidate's.
        reference_line, candidate_line: text of the source lines.
    """

    kind: Literal["missing", "added", "arguments", "tensors"]
    reference: Operator | None = None
    candidate: Operator | None = None
    arguments: dict[str, tuple[Argument, Argument]] = field(default_factory=dict)
    reference_line: str = ""
    candidate_line: str = ""


@dataclass(frozen=True, slots=True)
class OperatorDifference:
    """What is not the same in one phase of one call.

    Args:
        module, call: the reference's; None for what runs outside of all modules, a call of None for what belongs to a
            module's parameters (their gradients' sums, their updates).
        same: operators that are the same.
        reference_calls, candidate_calls: calls (``module#1``) in it that the other side does not make, and that run
            operators. With no `changes` the same is computed by other modules.
    """

    phase: Phase
    module: str | None
    call: int | None
    same: int
    changes: tuple[Change, ...]
    reference_calls: tuple[str, ...] = ()
    candidate_calls: tuple[str, ...] = ()


@dataclass(slots=True)
class _Group:
    """The operators of one phase of one call that both sides make, and the calls inside that one side alone makes."""

    operators: list[Operator] = field(default_factory=list)
    calls: dict[str, None] = field(default_factory=dict)


def diff(
    reference: StepOperators, candidate: StepOperators, modules: Collection[str] | None = None
) -> list[OperatorDifference]:
    """Where the operators of two sides differ: by phase, in the reference's order.

    Args:
        modules: patterns (`encoder.layers.0*`) of the modules to look at; None: all, and what runs outside of them.
    """
    paths = _call_paths(reference), _call_paths(candidate)
    both = {*paths[0].values()} & {*paths[1].values()}
    names = {path: name for side in reversed(paths) for name, path in side.items()}
    found = []
    for (phase, path), *sides in pairs(_by_call(reference, paths[0], both), _by_call(candidate, paths[1], both)):
        one, other = (_Group() if side is ABSENT else side for side in sides)
        module, number = path[-1] if path else (None, None)
        call = None if number is None else int(names[path].rpartition("#")[2])  # by the recording's count
        within = [name.rpartition("#")[0] for name in (*one.calls, *other.calls)]
        looked_at = within if module is None else [module, *within]
        if modules is not None and not any(_is_named(name, modules) for name in looked_at):
            continue
        same, changes = _changes(one.operators, other.operators, reference.lines, candidate.lines)
        if changes or one.calls or other.calls:
            found.append(OperatorDifference(phase, module, call, same, changes, tuple(one.calls), tuple(other.calls)))
    return sorted(found, key=lambda each: get_args(Phase).index(each.phase))


def moved_in(module: str, reference: StepOperators, candidate: StepOperators) -> tuple[str, ...]:
    """The modules that a module calls at another place among its own operators, where these are the same.

    No operator is another one then, and what comes before which is all that can make the function another.
    """
    (own, places), (other, other_places) = (_order_in(module, side) for side in (reference, candidate))
    if own != other or places.keys() != other_places.keys():
        return ()
    return tuple(dict.fromkeys(inner.rpartition("#")[0] for (outer, inner), place in places.items()
                               if other_places[outer, inner] != place))  # fmt: skip


def _order_in(module: str, side: StepOperators) -> tuple[dict[str, list[Tokens]], dict[tuple[str, str], int]]:
    """Of the forward calls of a module its own operators, and how many of them had run when it called another one."""
    own: dict[str, list[Tokens]] = {}
    places: dict[tuple[str, str], int] = {}
    for operator in side.operators:
        if operator.phase != "forward" or operator.module is None or operator.call is None:
            continue
        inner, outer = "", f"{operator.module}#{operator.call}"
        while outer and outer.rpartition("#")[0] != module:
            inner, outer = outer, side.enclosing.get(outer, "")
        if outer and inner:
            places.setdefault((outer, inner), len(own.get(outer, [])))
        elif outer:
            own.setdefault(outer, []).append(tokens(operator))
    return own, places


def bind(
    traced: Recording, side: str, reference: Recording, candidate: Recording, step: int | None = None
) -> Operators:
    """The operators that a traced run recorded, as evidence about a pair of recordings.

    Args:
        traced: made with `operators`, of the same experiment as that side's recording.
        side: ``reference`` or ``candidate``.
        step: which; None: the first that was traced.

    Raises:
        UserError: none was traced.
    """
    found = of_step(traced, step)
    return Operators(
        reference=seal_of(reference.index),
        candidate=seal_of(candidate.index),
        seconds=traced.index.duration_s,
        side=side,
        **dict(found),
    )


def read_operators(path: Path, step: int | None = None) -> StepOperators:
    """The operators of a recording, see `of_step`, or of a file of evidence.

    Raises:
        UserError: neither, damaged, or without operators of that step.
    """
    if not path.is_file():
        return of_step(open_recording(path, verify=False), step)
    found = read_evidence(path, Operators)
    if step not in (None, found.step):
        raise UserError("no operators were recorded", f"{path} is of step {found.step}", "Leave --step out.")
    return found


def read_both(reference: Path, candidate: Path, step: int | None = None) -> tuple[StepOperators, StepOperators]:
    """The operators of both sides, of one step: the first that was traced on both where none is named.

    Raises:
        UserError: as `read_operators`; or each side has operators, and of no step both.
    """
    if step is None:
        sides = [traced_steps(path) for path in (reference, candidate)]
        both = sorted({*sides[0]} & {*sides[1]})
        if all(sides) and not both:
            where = "; ".join(
                f"{path} has those of step {', '.join(map(str, steps))}"
                for path, steps in zip((reference, candidate), sides, strict=True)
            )
            raise UserError("no step whose operators both sides have", where, "Record one step on both.")
        step = both[0] if both else None
    return read_operators(reference, step), read_operators(candidate, step)


def refuse_unknown(modules: Collection[str] | None, *sides: StepOperators) -> None:
    """Nothing is said about modules that are not there.

    Raises:
        UserError: a pattern names no module that any side calls.
    """
    called = {call.rpartition("#")[0] for side in sides for call in side.enclosing}
    known = called | {each.module for side in sides for each in side.operators if each.module is not None}
    for pattern in modules or ():
        if not any(_is_named(name, [pattern]) for name in known):
            otherwise = "nest-ssl ops list shows the modules that ran operators."
            raise UserError("no such module was called", f"--module {pattern}", did_you_mean(pattern, known, otherwise))


def select(side: StepOperators, modules: Collection[str] | None) -> list[Operator]:
    """The operators of modules that a pattern names; None: all, and what runs outside of modules."""
    if modules is None:
        return side.operators
    return [each for each in side.operators if each.module is not None and _is_named(each.module, modules)]


def of_step(recording: Recording, step: int | None = None) -> StepOperators:
    """The operators of a step of a recording; of the first that was traced where none is named.

    Raises:
        UserError: they were not recorded.
    """
    for number in recording.steps if step is None else [step]:
        found = recording.step(number).operators()
        if found is not None:
            return found
    where = str(recording.path) if step is None else f"{recording.path}, step {step}"
    raise UserError("no operators were recorded", where, "Record again with operators=true and that step.")


def traced_steps(path: Path) -> list[int]:
    """The steps whose operators a recording, or a file of evidence, has."""
    if path.is_file():
        return [read_evidence(path, Operators).step]
    recording = open_recording(path, verify=False)
    return [number for number in recording.steps if recording.step(number).has(OPERATORS)]


def _is_named(module: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def _call_paths(side: StepOperators) -> dict[str, CallPath]:
    """Of each call by its name, its path."""
    paths: dict[str, CallPath] = {"": ()}
    counts: Counter[tuple[CallPath, str]] = Counter()
    for name, outer in side.enclosing.items():
        module = name.rpartition("#")[0]
        place = paths.get(outer, ())
        paths[name] = (*place, (module, counts[place, module]))
        counts[place, module] += 1
    return paths


def _by_call(
    side: StepOperators, paths: dict[str, CallPath], both: Collection[CallPath]
) -> dict[tuple[Phase, CallPath], _Group]:
    """The operators of one side by phase and call, those of a call that is not in `both` with the one around it."""
    groups: dict[tuple[Phase, CallPath], _Group] = {}
    for operator in side.operators:
        name, own = f"{operator.module}#{operator.call}", operator.module is not None and operator.call is None
        path: CallPath = ((operator.module or "", None),) if own else paths.get(name, ())
        around = path
        while not own and around not in both:
            around = around[:-1]
        group = groups.setdefault((operator.phase, around), _Group())
        group.operators.append(operator)
        if around != path:
            group.calls[name] = None
    return groups


def _changes(
    reference: Sequence[Operator],
    candidate: Sequence[Operator],
    reference_lines: Mapping[str, str],
    candidate_lines: Mapping[str, str],
) -> tuple[int, tuple[Change, ...]]:
    """How many operators are the same, and those that are not, in order."""
    same, changes = 0, []
    for one, other in aligned(reference, candidate):
        lines = (
            reference_lines.get(one.source, "") if one else "",
            candidate_lines.get(other.source, "") if other else "",
        )
        if one is None or other is None:
            changes.append(Change("missing" if one else "added", one, other, {}, *lines))
            continue
        arguments = {n: (a, b) for n, a, b in pairs(one.arguments, other.arguments) if repr(a) != repr(b)}
        if arguments:
            changes.append(Change("arguments", one, other, arguments, *lines))
        elif one.tensors != other.tensors or one.outputs != other.outputs:
            changes.append(Change("tensors", one, other, {}, *lines))
        else:
            same += 1
    return same, tuple(changes)
