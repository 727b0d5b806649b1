"""Several ranks of one run: each is compared with its like, and what they share must be the same on all of them.

Whatever is said of one rank is a `Comparison` as ever. Here is what only shows over all: after a step of data-parallel
training every rank has the same parameters, on either side. Only digests are read for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nest_ssl.base.errors import EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK
from nest_ssl.compare.comparison import Comparison, Side
from nest_ssl.compare.findings import Note, Status
from nest_ssl.compare.kinds import FaultKind, Likely
from nest_ssl.compare.rules.known import Used, used_by_any
from nest_ssl.recording import layout as files
from nest_ssl.recording.index import Index

_BEFORE = ("initial_weights", "batch", "draws", "forward", "loss")  # what a rank does before gradients are added up
# From the worst: what is not the same experiment says nothing, and a difference more than too little compared.
_SEVERITY = (EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK)


@dataclass(frozen=True, slots=True)
class Parted:
    """The first parameter that a rank has otherwise than the first rank, and how many more at that step."""

    step: int
    rank: int
    parameter: str
    more: int


@dataclass(frozen=True, slots=True)
class SideRanks:
    """One side over its ranks.

    Args:
        world_size: of the run.
        steps: of which the parameters were compared.
        parameters: how many each rank trains.
        parted: the first difference between ranks; None: at no step.
        buffers: that are not the same on all ranks after the last step; batch statistics are each rank's own.
        frozen: parameters that are not trained, and that are not the same on all ranks after the last step.
    """

    world_size: int
    steps: tuple[int, ...]
    parameters: int
    parted: Parted | None
    buffers: int
    frozen: int = 0


@dataclass(frozen=True, slots=True)
class OverRanks:
    """All ranks of both sides: the verdict is the worst of any, and no pass where ranks part.

    `ledger` are the differences that the user knows, over all ranks: one that no rank has any more is no pass either.
    """

    ranks: list[Comparison]
    reference: SideRanks
    candidate: SideRanks
    verdict: Status
    exit_code: int
    ledger: list[Used] = field(default_factory=list)


def compare_over_ranks(ranks: Sequence[Comparison]) -> OverRanks:
    """Judge all ranks together.

    Args:
        ranks: the comparisons of rank 0, rank 1 and so on; of the side with more ranks the others are not compared, and
            the contract of each says that their number differs.
    """
    sides = [_over_ranks([each.reference for each in ranks], ranks[0].steps)]
    sides.append(_over_ranks([each.candidate for each in ranks], ranks[0].steps))
    worst = min(ranks, key=lambda comparison: _SEVERITY.index(comparison.exit_code))
    verdict, code = worst.verdict, worst.exit_code
    if code == EXIT_OK:
        equivalent = any(comparison.verdict is Status.EQUIVALENT for comparison in ranks)
        verdict = Status.EQUIVALENT if equivalent else Status.IDENTICAL
        if any(side.parted for side in sides):  # on both alike, or a rank would have diverged
            verdict, code = Status.INCONCLUSIVE, EXIT_INCONCLUSIVE
    ledger = used_by_any([comparison.ledger for comparison in ranks])
    if code in (EXIT_OK, EXIT_INCONCLUSIVE) and any(used.fault for used in ledger):
        verdict, code = Status.DIVERGED, EXIT_DIVERGED
    _name_the_one_rank(ranks)
    return OverRanks(list(ranks), sides[0], sides[1], verdict, code, ledger)


def _name_the_one_rank(ranks: Sequence[Comparison]) -> None:
    """Where one rank alone differs before gradients are added up, what differs on the others comes from it."""
    begins = [
        min((one.moment.step for rung in each.rungs if rung.name in _BEFORE for one in rung.findings), default=None)
        for each in ranks
    ]
    step = min((found for found in begins if found is not None), default=None)
    first = [rank for rank, found in enumerate(begins) if found is not None and found == step]
    if step is None or len(first) != 1 or len(ranks) < 2 or any(each.contract_differs for each in ranks):
        return
    reason, own = Note("kind_one_rank", {"rank": first[0], "step": max(step, 0)}), tuple(ranks[first[0]].kinds)
    for each in ranks:
        if each.kinds:
            each.kinds = [Likely(FaultKind.RANKS, reason, born=each.kinds[0].born, own=own)]


def _over_ranks(ranks: Sequence[Side], steps: Sequence[int]) -> SideRanks:
    """What the recordings of one side's ranks have in common."""
    indexes, parted, others = [rank.index for rank in ranks], None, set[str]()
    first = indexes[0]
    trained = set(_digests(first, files.INITIAL_WEIGHTS)) & set(_digests(first, _last(first, steps, files.GRADIENTS)))
    for step in steps:
        name = f"{files.step_folder(step)}/{files.WEIGHTS}"
        all_of_first = _digests(first, name)
        others = set()
        for rank, index in enumerate(indexes[1:], start=1):
            found = _digests(index, name)
            unlike = [each for each, digest in all_of_first.items() if found.get(each) != digest]
            parameters = [each for each in unlike if each in trained]
            others |= {*unlike} - trained
            if parameters and parted is None:
                parted = Parted(step, rank, parameters[0], len(parameters) - 1)
    frozen = len(others - ranks[0].buffers)
    return SideRanks(first.world_size, tuple(steps), len(trained), parted, len(others) - frozen, frozen)


def _last(index: Index, steps: Sequence[int], name: str) -> str:
    """The file of this name of the last step that has one."""
    named = [f"{files.step_folder(step)}/{name}" for step in steps]
    return next((each for each in reversed(named) if each in index.tensors), "")


def _digests(index: Index, name: str) -> dict[str, str]:
    return {path: entry.digest for path, entry in index.tensors.get(name, {}).items()}
