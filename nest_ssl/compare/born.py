"""Every place where a difference was born, in causal order: from the replay, and from the recordings where it has none.

What was replayed and is another function is born in its own module. The rest shows end to end (`roots`), unless the
replay made the same difference of it and it is the same function all the same: then it is rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from nest_ssl.compare.findings import Finding
from nest_ssl.compare.operators import Change, diff, moved_in
from nest_ssl.compare.roots import Root
from nest_ssl.compare.rules.same_function import By, Function, UnitJudgement
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import Operators, Unit

OPERATORS = 8  # of one birthplace
PHASES = ("structure", "initial weights", "validation", "between steps", "batch", "draws", "forward", "loss",
          "backward", "clipping", "optimizer", "schedule")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Born:
    """One place where a difference was born.

    Args:
        phase: one of `PHASES`.
        module: None for what is no module's.
        call, step, rank, order: of the first time; the order is that of execution.
        times: in how many calls, of all steps.
        address: of what differs most.
        size: relative to the reference, Frobenius; None where it has no meaning.
        floors: the same in floors of that tensor; None where there is none.
        in_float64: the size there, relative; a correct rewrite agrees to 1e-13.
        by: what showed it; None where the recordings alone do.
        decided: False where only other bits are known, and nothing says yet what they mean.
        why: of what raised, the error.
        operators, changes: that differ, as text and as they are.
        moved: modules that it calls at another place among its operators, which are the same.
        source: ``file:line`` of the reference's and the candidate's code, empty where it is not known.
    """

    phase: str
    module: str | None
    call: int | None = None
    step: int | None = None
    rank: int = 0
    order: int = 0
    times: int = 1
    address: Address | None = None
    size: float | None = None
    floors: float | None = None
    in_float64: float | None = None
    by: By | None = None
    decided: bool = True
    why: str = ""
    operators: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()
    moved: tuple[str, ...] = ()
    source: tuple[str, str] = ("", "")

    def merged(self, other: Born) -> Born:
        """Two times of one module and phase: where it was born first, and how far it is apart at most."""
        sizes = [(one.decided, one.floors or 0.0, one.size or 0.0) for one in (self, other)]
        most = other if sizes[1] > sizes[0] else self
        return replace(
            self, times=self.times + other.times, address=most.address, size=most.size, floors=most.floors,
            in_float64=most.in_float64, by=most.by, decided=most.decided, why=self.why or other.why,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModuleJudgement:
    """What is known of a module's function: of its draws, its forward and its backward together.

    Args:
        units: how many were replayed, or could not be.
        why: of what was not replayed, the reason.
    """

    module: str
    function: Function
    units: int
    why: str = ""


_WORST_FIRST = (
    Function.ANOTHER, Function.UNDECIDED, Function.KNOWN, Function.SAME, Function.NOT_REPLAYED, Function.CAME_IN,
)  # fmt: skip


def of_unit(judged: UnitJudgement) -> Born:
    """What was replayed and is another function, as a birthplace."""
    unit, worst = judged.unit, judged.worst
    return Born(
        unit.phase,
        unit.module,
        unit.call,
        unit.step,
        unit.rank,
        unit.order or 0,
        address=worst.place.address if worst else None,
        size=worst.relative if worst and worst.shape is not None else None,
        floors=judged.floors,
        in_float64=judged.float64,
        by=judged.by,
        decided=judged.function is Function.ANOTHER,
        why=unit.why or (worst.why if worst else ""),
    )


def born_of(
    units: Sequence[UnitJudgement], roots: Sequence[Root], is_rounding: Callable[[Finding], bool]
) -> list[Born]:
    """Everything that was born anywhere, in causal order; one entry for a module and phase.

    Args:
        units: what was replayed, judged; none where nothing was.
        roots: what differs end to end on its own.
        is_rounding: whether other evidence than the replay shows a difference to be rounding.
    """
    found: dict[tuple[str, str | None], Born] = {}
    # Where one side alone makes an update with a batch, it adds up other numbers of batches: their shares, and what
    # counts updates, follow.
    counted = any(one.finding.rung == "optimizer_input" and one.finding.address.kind == Kind.UPDATE for one in roots)
    for judged in units:
        if judged.function not in (Function.ANOTHER, Function.UNDECIDED):
            continue
        sizes = [one.relative for one in judged.unit.deviations]
        shares = judged.unit.phase == "loss" and bool(sizes) and all(map(_is_share, sizes))
        if counted and (shares or judged.unit.phase == "schedule"):
            continue
        born = of_unit(judged)
        known = found.get((born.phase, born.module))
        found[born.phase, born.module] = known.merged(born) if known else born
    same = [u.unit for u in units if u.function is Function.SAME]
    another = [u.unit for u in units if u.function is Function.ANOTHER and u.unit.phase == "backward"]
    places = {(u.step, one.place.address) for u in another for one in u.deviations}
    handed = {(step, place.module) for step, place in places if place.kind == Kind.OUTPUT_GRADIENT}
    explained = {(unit.step, deviation.place.address) for unit in same for deviation in unit.deviations}
    given = {u.unit.step for u in units if u.unit.phase == "clipping" and u.function is Function.ANOTHER}
    given &= {unit.step for unit in same if unit.phase == "optimizer"}  # which makes the same of the same gradients
    for root in roots:
        left = [one for one in root.findings if (one.moment.step, one.address) not in explained]
        left = [one for one in left if not is_rounding(one)]
        replayed = {phase for phase, module in found if module is None and phase not in ("forward", "backward")}
        if not left or (root.phase, root.module) in found or root.phase in replayed:
            continue
        if root.phase == "optimizer" and left[0].moment.step in given:
            continue
        if _came_in(root, left[0], same, found, handed):
            continue
        sizes = [one.metrics.relative or 0.0 if one.metrics else 0.0 for one in left]
        if counted and root.phase == "loss" and all(map(_is_share, sizes)):
            continue
        first, step, judgement = left[0], left[0].moment.step, left[0].judgement
        found[root.phase, root.module] = Born(
            root.phase,
            root.module,
            first.address.call,
            None if step < 0 else step,
            first.address.rank,
            int(min(first.moment.event, 1 << 62)),
            len(left) if root.phase == "optimizer" else 1,
            first.address,
            first.metrics.relative if first.metrics else None,
            judgement.ratio if judgement and judgement.rule == "noise floor" else None,
        )
    order = {phase: place for place, phase in enumerate(PHASES)}
    return sorted(found.values(), key=lambda b: (-1 if b.step is None else b.step, order[b.phase], b.order))


def _came_in(
    root: Root,
    first: Finding,
    same: Sequence[Unit],
    found: Mapping[tuple[str, str | None], Born],
    handed: Collection[tuple[int, str | None]],
) -> bool:
    """Whether the replay clears a module that the recordings suspect only because of its place.

    It drew otherwise, and draws the same given the same inputs; or backward reached it last before the first gradient
    that differs, it makes the same of the same gradients, and another module does not; or it makes the same of the same
    gradients, and was handed other ones by a module that is another function, behind the hook that recorded them.

    Args:
        handed: steps and modules at whose outputs other gradients arrive than the replay of another module gives.
    """
    key = (root.phase, root.module, first.moment.step)
    cleared = any((unit.phase, unit.module, unit.step) == key for unit in same)
    if root.phase == "backward" and first.address.kind == Kind.OUTPUT_GRADIENT:
        # A gradient that one side alone computes is one that something before it asks for, or does not.
        asked = first.missing and any(phase == "structure" for phase, _ in found)
        return cleared and (asked or any(phase == "backward" for phase, _ in found))
    if root.phase == "backward":
        return cleared and (first.moment.step, root.module) in handed
    return root.phase == "draws" and cleared


def _is_share(relative: float) -> bool:
    """Whether numbers that are so far apart may be a whole number of times the others, or such a part of them."""
    times = (1 + relative, 1 / (1 - relative) if relative < 1 else 0.0)
    return relative > 0.4 and any(abs(one - round(one)) < 1e-5 * one for one in times)


def judge_modules(units: Sequence[UnitJudgement], differing: set[str]) -> list[ModuleJudgement]:
    """Every module that was to be replayed, in the order of its first call; `differing` are those that differ end to
    end.
    """
    groups: dict[str, list[UnitJudgement]] = {}
    for judged in sorted(units, key=lambda u: (u.unit.step, u.unit.order or 0)):
        if judged.unit.module is not None:
            groups.setdefault(judged.unit.module, []).append(judged)
    found = []
    for module, group in groups.items():
        functions = {judged.function for judged in group}
        worst = next(function for function in _WORST_FIRST if function in functions)
        why = next((judged.unit.why for judged in group if judged.function is Function.NOT_REPLAYED), "")
        if worst is Function.SAME and module in differing:
            worst = Function.CAME_IN
        found.append(ModuleJudgement(module, worst, len(group), why))
    return found


# Operators that only arrange memory: what they differ by is seldom what numbers differ by.
_ARRANGING = re.compile(
    r"aten\.(_?(unsafe_)?view|_reshape|reshape|transpose|permute|t|(un)?squeeze|expand|slice|select|detach|alias|clone"
    r"|copy_|_to_copy|empty|contiguous|as_strided|split|unbind|new_|zeros|ones)"
)


def with_lines(
    born: Sequence[Born],
    sources: Mapping[str, tuple[str, str]],
    operators: tuple[Operators, Operators] | None,
) -> list[Born]:
    """The same with the source lines of both sides, and with the operators that differ where those were traced.

    Args:
        sources: by module the reference's and the candidate's file or line.
        operators: of the reference and the candidate. Where backward differs in what a module in another brings to the
            inputs of both, the replay sees it through the outer one alone; it is the inner one's if the operators of
            backward differ in that one and nowhere else in the outer one, whose own are the same.
    """
    found, own = [], {one.module for one in born}
    for one in born:
        place = one.address
        handed_on = place is not None and place.kind == Kind.OUTPUT_GRADIENT
        if place and handed_on and operators and one.module and not f"{place.module}.".startswith(f"{one.module}."):
            apart = diff(*operators, [one.module, f"{one.module}.*"])
            modules = {each.module for each in apart if each.phase == "backward" and each.changes}
            itself = any(each.module == one.module and each.changes for each in apart)
            if len(modules) == 1 and not itself and not modules & own:
                one = replace(one, module=modules.pop())
        lines, changes, moved = sources.get(one.module or "", ("", "")), list[Change](), tuple[str, ...]()
        if operators and one.module is not None and one.phase in ("forward", "backward"):
            differences = diff(*operators, [one.module])
            here = [each for each in differences if (each.phase, each.module) == (one.phase, one.module)]
            changes = [change for each in here[:1] for change in each.changes]
            moved = moved_in(one.module, *operators) if one.phase == "forward" and not changes else ()
        names = [(change, (change.reference or change.candidate)) for change in changes]
        ranked = sorted(
            [(change, operator.name) for change, operator in names if operator and change.kind != "tensors"],
            key=lambda each: (each[0].kind != "arguments", bool(_ARRANGING.match(each[1]))),
        )
        if ranked:
            one_side, other = ranked[0][0].reference, ranked[0][0].candidate
            lines = (one_side.source if one_side else lines[0], other.source if other else lines[1])
        texts = [
            ", ".join([f"{name}: {key} {a} -> {b}" for key, (a, b) in change.arguments.items()])
            if change.kind == "arguments"
            else f"{change.kind} {name}"
            for change, name in ranked
        ]
        shown = tuple(dict.fromkeys([*texts, *(f"moved {name}" for name in moved)]))[:OPERATORS]
        found.append(replace(one, source=lines, operators=shown, changes=tuple(changes), moved=moved))
    return found
