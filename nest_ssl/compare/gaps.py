"""Where a difference went through a function that was not shown to be the same.

Rounding goes on through every function behind it, and a bug there hides in what came in. So each function that got
other numbers has to be shown to be the same: by its replay, or because both trainers agree in float64 on what it makes,
at that step of that rank. What got the same numbers and made the same bits of them needs no more evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.findings import Relation, RungName
from nest_ssl.compare.rules.same_function import Function, UnitJudgement
from nest_ssl.recording.address import Kind

Part = tuple[int, int, RungName]  # step, rank
Passage = tuple[str, str | None, int | None]  # phase, module, call
# By phase, the rungs on which stands what it makes. Of clipping these are the states and updates made of what it gives.
_MAKES: dict[str, tuple[RungName, ...]] = {
    "batch": ("batch",),
    "forward": ("forward",),
    "loss": ("loss", "gradients"),
    "backward": ("gradients",),
    "clipping": ("weights",),
    "optimizer": ("weights",),
}
_MADE = (Kind.PARAMETER, Kind.UPDATE, Kind.OPTIMIZER_STATE)


@dataclass(frozen=True, slots=True)
class Gap:
    """One function that is not known to be the same, and made other numbers than the reference's.

    Args:
        phase, module, call: as of a unit of a replay.
        why: it was not replayed.
    """

    phase: str
    module: str | None
    call: int | None
    step: int
    rank: int
    why: str


def gaps(
    steps: Sequence[StepFindings], units: Sequence[UnitJudgement], covers: Collection[Part], updated: Mapping[int, bool]
) -> list[Gap]:
    """All of them, in causal order.

    Args:
        steps: what differs end to end.
        units: what was replayed, or could not be.
        covers: what both trainers agree on in float64.
        updated: of each step, whether the reference made an update.
    """
    judged: dict[tuple[int, int, Passage], list[UnitJudgement]] = {}
    for one in units:
        unit = one.unit
        judged.setdefault((unit.step, unit.rank, (unit.phase, unit.module, unit.call)), []).append(one)
    found = []
    for step in steps:
        place = step.step, step.rank
        whole = judged.get((*place, ("forward", None, None)), [])  # a step of which nothing could be replayed
        for passage in dict.fromkeys(_passages(step, updated.get(step.step, True))):
            phase, module, call = passage
            if all((*place, rung) in covers for rung in _MAKES[phase]):
                continue
            here = judged.get((*place, passage), whole)
            sums = judged.get((*place, (phase, module, None)), []) if call is not None else []
            left = [one for one in [*here, *sums] if one.function is Function.NOT_REPLAYED]
            left = [one for one in left if not _with_another(one, judged)]
            if left or not here:
                others = "only the first rank is replayed" if step.rank else "the replay does not have it"
                found.append(Gap(*passage, *place, left[0].unit.why if left else others))
    return found


def _passages(step: StepFindings, updated: bool) -> Iterator[Passage]:
    """The functions that made other numbers at this step."""
    gradients = step.tallies["gradients"].findings
    if step.tallies["batch"].findings:
        yield "batch", None, None
    for call in step.calls:
        if call.relation is not Relation.STOPPED:
            yield "forward", call.module, call.call
    if step.tallies["loss"].findings or gradients:
        yield "loss", None, None
    for one in gradients:
        if one.address.kind == Kind.OUTPUT_GRADIENT:
            yield "backward", one.address.module, one.address.call
    made = [*step.tallies["optimizer_input"].findings, *step.tallies["weights"].findings]
    if updated and any(one.address.kind in (*_MADE, Kind.APPLIED_GRADIENT) for one in made):
        yield "clipping", None, None
        yield "optimizer", None, None


def _with_another(one: UnitJudgement, judged: Mapping[tuple[int, int, Passage], Sequence[UnitJudgement]]) -> bool:
    """Whether it was judged together with the call around it, which is the same function or a fault of its own."""
    while one.function is Function.NOT_REPLAYED and one.unit.judged_with:
        module, _, call = one.unit.judged_with.rpartition("#")
        around = judged.get((one.unit.step, one.unit.rank, (one.unit.phase, module, int(call))))
        if not around or around[0] is one:
            return False
        one = around[0]
    return one.function is not Function.NOT_REPLAYED
