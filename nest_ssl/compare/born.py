"""Every place where a difference was born, in causal order: from the replay, and from the recordings where it has none.

What was replayed and is another function is born in its own module. The rest shows end to end (`roots`), unless the
replay made the same difference of it and it is the same function all the same: then it is rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nest_ssl.compare.findings import Finding
from nest_ssl.compare.roots import Root
from nest_ssl.compare.rules.same_function import By, Function, UnitJudgement
from nest_ssl.recording.address import Address

PHASES = ("structure", "initial weights", "batch", "draws", "forward", "loss", "backward", "clipping", "optimizer",
          "schedule", "validation")  # fmt: skip


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
        by: what showed it; None where the recordings alone do.
        decided: False where only other bits are known, and nothing says yet what they mean.
        why: of what raised, the error.
        operators: that differ, as text.
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
    by: By | None = None
    decided: bool = True
    why: str = ""
    operators: tuple[str, ...] = ()
    source: tuple[str, str] = ("", "")


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
    for born in map(_of_unit, (u for u in units if u.function in (Function.ANOTHER, Function.UNDECIDED))):
        known = found.get((born.phase, born.module))
        found[born.phase, born.module] = _with(known, born) if known else born
    same = [u.unit for u in units if u.function is Function.SAME]
    explained = {(unit.step, deviation.place.address) for unit in same for deviation in unit.deviations}
    for root in roots:
        left = [one for one in root.findings if (one.moment.step, one.address) not in explained]
        left = [one for one in left if not is_rounding(one)]
        if left and (root.phase, root.module) not in found:
            found[root.phase, root.module] = _of_root(root, left[0])
    return sorted(
        found.values(), key=lambda born: (-1 if born.step is None else born.step, PHASES.index(born.phase), born.order)
    )


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
        worst: Function = next(
            f for f in (Function.ANOTHER, Function.UNDECIDED, Function.SAME, Function.NOT_REPLAYED) if f in functions
        )
        why = next((judged.unit.why for judged in group if judged.function is Function.NOT_REPLAYED), "")
        if worst is Function.SAME and module in differing:
            worst = Function.CAME_IN
        found.append(ModuleJudgement(module, worst, len(group), why))
    return found


def _of_unit(judged: UnitJudgement) -> Born:
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
        by=judged.by,
        decided=judged.function is Function.ANOTHER,
        why=unit.why or (worst.why if worst else ""),
    )


def _of_root(root: Root, finding: Finding) -> Born:
    judgement, metrics, step = finding.judgement, finding.metrics, finding.moment.step
    floors = judgement.ratio if judgement and judgement.rule == "noise floor" else None
    return Born(
        root.phase,
        root.module,
        finding.address.call,
        None if step < 0 else step,
        finding.address.rank,
        int(min(finding.moment.event, 1 << 62)),
        len(root.findings) if root.phase == "optimizer" else 1,
        finding.address,
        metrics.relative if metrics else None,
        floors,
    )


def _with(first: Born, other: Born) -> Born:
    """Two times of one module and phase: where it was born first, and how far it is apart at most."""
    larger = (other.decided, other.floors or 0.0, other.size or 0.0) > (
        first.decided,
        first.floors or 0.0,
        first.size or 0.0,
    )
    size = other if larger else first
    return replace(
        first, times=first.times + other.times, address=size.address, size=size.size, floors=size.floors,
        by=size.by, decided=size.decided, why=first.why or other.why,
    )  # fmt: skip


def with_sources(born: Sequence[Born], sources: Mapping[str, tuple[str, str]]) -> list[Born]:
    """The same with the lines of both sides, by module."""
    return [replace(one, source=sources.get(one.module or "", one.source)) for one in born]
