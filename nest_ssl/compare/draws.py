"""Rung 5: random draws. Which stage drew how many numbers from which generator, on both sides.

A recording's ledger is, for each generator, a chain of states: every entry starts where the one before it ended. Two
sides that make the same draws walk through the same states, whatever they call the stage that draws and however they
divide the draws between calls, so chains are matched by their states first. Where they part for good, the rest is
matched by stage, so that the draw that is to blame stands apart from those that merely came in with another state.

Recordings made before there were ledgers are judged by the digests that they have, of the states at the boundaries of
each step; those are compared in any case, since a stream that nobody draws from may still differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from nest_ssl.base.rng import BOUNDARIES
from nest_ssl.compare.calls import Call, key_of, timeline
from nest_ssl.compare.result import (
    CAME_IN,
    DRAWN_ELSEWHERE,
    DRAWN_SAME,
    DRAWS,
    LEFT_OTHERWISE,
    MISSING_CANDIDATE,
    MISSING_REFERENCE,
    ONE_SIDED,
    OTHER_COUNT,
    STATE,
    VALUES,
    Difference,
    Draw,
    Place,
    Tally,
)
from nest_ssl.recording.stages import BACKWARD, FETCH, FIT_START, MODEL_CONSTRUCTION, OPTIMIZER_STEP, VALIDATION

FORWARD = "forward"  # with the code around it, up to the loss
PHASES = (MODEL_CONSTRUCTION, FIT_START, VALIDATION, FETCH, FORWARD, BACKWARD, OPTIMIZER_STEP)
BEFORE_MODEL = "before_model"
Table = Mapping[str, Any]

UNCOUNTED = "uncounted"  # too many to count, or seeded anew


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a ledger; `event` places it among the starts and ends of the reference's calls."""

    stage: str
    event: int
    draws: int | None
    before: str
    after: str


Pair = tuple[Sequence[Entry], Sequence[Entry], str]  # the reference's, the candidate's, their relation


class Clock:
    """Tells the candidate's moments by the reference's events: the same start or end of the same call."""

    def __init__(self, ours: list[Call], theirs: list[Call]) -> None:
        known = {(event, key_of(call)): position for position, (event, call, _) in enumerate(timeline(ours))}
        self._moments = [known.get((event, key_of(call))) for event, call, _ in timeline(theirs)]
        later = len(known)
        for position in reversed(range(len(self._moments))):  # a call of the candidate alone: whatever comes next
            later = self._moments[position] = self._moments[position] if self._moments[position] is not None else later
        self._last = len(known)

    def of_candidate(self, event: int) -> int:
        if not self._moments:
            return event  # no calls to go by
        return self._moments[event] if event < len(self._moments) else self._last


def compare_ledgers(tally: Tally, ours: list[Table] | None, theirs: list[Table] | None, clock: Clock) -> list[Draw]:
    """Compare two ledgers of one step, or of what came before the steps; differences go to `tally` in order.

    Returns the draws of both sides in order of execution; none where a side has no ledger (an older recording).
    """
    if ours is None or theirs is None:
        if ours is not None or theirs is not None:
            side = "reference" if ours is None else "candidate"
            tally.notes.append(f"The {side} has no ledger of random draws: only the states around them are compared.")
        return []
    found = []
    for generator in dict.fromkeys(entry["generator"] for entry in [*ours, *theirs]):
        chains = _chain(ours, generator), _chain(theirs, generator, clock)
        found += [_draw(tally, generator, *pair) for pair in _pairs(*chains)]
    found.sort(key=_when)
    for draw in found:
        tally.item("stages", [draw.difference] if draw.difference else [])
    _note_elsewhere(tally, found)
    return found


def _when(draw: Draw) -> tuple[int, int, bool]:
    """In order of execution; a loader draws its order, with torch, before it makes the first batch."""
    phase = phase_of(draw.stage)
    return PHASES.index(phase), draw.event, phase == FETCH and not draw.generator.startswith("torch")


def compare_states(tally: Tally, moment: str, ours: Table, theirs: Table) -> None:
    """The digests of every generator's state at one moment; one that neither side recorded is passed over."""
    states = [side.get(moment) or {} for side in (ours, theirs)]
    for generator in dict.fromkeys([*states[0], *states[1]]):
        place = Place(tally.rung, tally.step, None, None, f"rng.{moment}.{generator}", tally.rank)
        reference, candidate = (state.get(generator) for state in states)
        if reference is None or candidate is None:
            tally.missing(place, MISSING_REFERENCE if reference is None else MISSING_CANDIDATE, reference or candidate)
        else:
            same = reference == candidate
            tally.item("random states", [] if same else [Difference(place, VALUES, reference, candidate)])


def compare_draws_before_the_steps(ours: Table, theirs: Table) -> tuple[Tally, list[Draw]]:
    """Building the model and starting to fit, from the indexes of two recordings."""
    tally = Tally("draws")
    draws = compare_ledgers(tally, ours.get("ledger"), theirs.get("ledger"), Clock([], []))
    states = [index.get("rng") or {} for index in (ours, theirs)]
    for moment in dict.fromkeys([*states[0], *states[1]]):
        compare_states(tally, moment, *states)
    tally.differences.sort(key=lambda d: moment_of(d) != BEFORE_MODEL)
    return tally, draws


def compare_draws_of_step(tally: Tally, ours: Table, theirs: Table, clock: Clock) -> list[Draw]:
    """One step, from the content of two files `rng.json`."""
    draws = compare_ledgers(tally, ours.get("ledger"), theirs.get("ledger"), clock)
    for moment in BOUNDARIES:
        compare_states(tally, moment, ours, theirs)
    workers = [side.get("loader_workers") for side in (ours, theirs)]
    if any(workers):
        tally.notes.append(_workers(*workers))
    return draws


def phase_of(stage: str) -> str:
    """The part of training in which a stage comes."""
    return stage if stage in PHASES else FORWARD


def moment_of(difference: Difference) -> str | None:
    """The boundary at which a random state differs; None for any other difference."""
    kind, _, rest = (difference.place.tensor or "").partition(".")
    return rest.partition(".")[0] if kind == "rng" else None


def is_random(difference: Difference) -> bool:
    return difference.place.rung == "draws"


# --- matching two chains ----------------------------------------------------------------------------------------------


def _chain(ledger: list[Table], generator: str, clock: Clock | None = None) -> list[Entry]:
    return [
        Entry(
            entry["stage"],
            clock.of_candidate(entry["event"]) if clock else entry["event"],
            entry["draws"],
            entry["before"],
            entry["after"],
        )
        for entry in ledger
        if entry["generator"] == generator
    ]


def _pairs(ours: list[Entry], theirs: list[Entry]) -> Iterator[Pair]:
    while ours and theirs and ours[0].before == theirs[0].before and (meeting := _meeting(ours, theirs)):
        mine, yours = ours[: meeting[0]], theirs[: meeting[1]]
        yield from _in_step(mine, yours)
        ours, theirs = ours[meeting[0] :], theirs[meeting[1] :]
    yield from _by_stage(ours, theirs)


def _meeting(ours: list[Entry], theirs: list[Entry]) -> tuple[int, int] | None:
    """After how many entries of either side both are in the same state again; None if never."""
    if ours[0].after == theirs[0].after:
        return 1, 1
    reached = {entry.after: count for count, entry in reversed(list(enumerate(theirs, 1)))}
    return next(((n, reached[entry.after]) for n, entry in enumerate(ours, 1) if entry.after in reached), None)


def _in_step(ours: Sequence[Entry], theirs: Sequence[Entry]) -> Iterator[Pair]:
    """The same draws in all, but if the same few stages divide them otherwise, one of them drew another count.

    Where the stages are others, the draws are only made elsewhere: say, by a dropout that is no module of its own.
    """
    stages = {entry.stage for entry in ours}
    if len(stages) > 1 and stages == {entry.stage for entry in theirs}:
        yield from _by_stage(ours, theirs)
    else:
        yield ours, theirs, _relation(ours, theirs)


def _by_stage(ours: Sequence[Entry], theirs: Sequence[Entry]) -> Iterator[Pair]:
    """Entries of two chains that have parted, matched by the names of their stages."""
    stages = [[entry.stage for entry in side] for side in (ours, theirs)]
    for kind, i, i_end, j, j_end in SequenceMatcher(None, *stages, autojunk=False).get_opcodes():
        mine, yours = ours[i:i_end], theirs[j:j_end]
        if kind == "equal":
            yield from (([a], [b], _relation([a], [b])) for a, b in zip(mine, yours, strict=True))
        elif mine and yours:  # other stages between two that both have: nobody can say which of them is which
            yield mine, yours, _relation(mine, yours)
        else:
            yield from (([entry], [], ONE_SIDED) for entry in mine)
            yield from (([], [entry], ONE_SIDED) for entry in yours)


def _relation(ours: Sequence[Entry], theirs: Sequence[Entry]) -> str:
    if _total(ours) != _total(theirs):
        return OTHER_COUNT
    if ours[0].before != theirs[0].before:
        return CAME_IN
    if ours[-1].after != theirs[-1].after:
        return LEFT_OTHERWISE
    same = len(ours) == len(theirs) == 1 and ours[0].stage == theirs[0].stage
    return DRAWN_SAME if same else DRAWN_ELSEWHERE


def _total(entries: Sequence[Entry]) -> int | None:
    """What these entries drew in all; None if one of them was not counted."""
    draws = [entry.draws for entry in entries]
    return None if None in draws else sum(count for count in draws if count is not None)


def _draw(tally: Tally, generator: str, ours: Sequence[Entry], theirs: Sequence[Entry], relation: str) -> Draw:
    stages = [tuple(dict.fromkeys(entry.stage for entry in side)) for side in (ours, theirs)]
    draws = _total(ours), _total(theirs)
    first = (ours or theirs)[0]
    came_in = bool(ours and theirs) and ours[0].before != theirs[0].before
    place = _place(tally, first.stage, generator)
    difference = None
    if relation == CAME_IN:
        difference = Difference(place, STATE, ours[0].before, theirs[0].before)
    elif relation == LEFT_OTHERWISE:
        difference = Difference(place, STATE, ours[-1].after, theirs[-1].after)
    elif relation in (OTHER_COUNT, ONE_SIDED):
        difference = Difference(place, DRAWS, *(UNCOUNTED if count is None else count for count in draws))
    return Draw(tally.step, tally.rank, generator, *stages, draws, relation, first.event, came_in, difference)


def _place(tally: Tally, stage: str, generator: str) -> Place:
    module, mark, call = stage.rpartition("#")
    if not mark:
        return Place(tally.rung, tally.step, None, None, f"{stage}.{generator}", tally.rank)
    return Place(tally.rung, tally.step, module, int(call), generator, tally.rank)


def _note_elsewhere(tally: Tally, draws: list[Draw]) -> None:
    moved = [draw for draw in draws if draw.relation == DRAWN_ELSEWHERE]
    if moved:
        first = moved[0]
        tally.notes.append(
            f"{_at(tally)}{len(moved):,} draws are the same numbers of the same stream, made in another call, "
            f"first `{first.reference[0]}` against `{first.candidate[0]}`."
        )


def _workers(reference: Any, candidate: Any) -> str:
    count = str(reference) if reference == candidate else f"{reference} and {candidate}"
    return f"Batches were fetched with {count} loader workers: what those drew is in no ledger, and shows in the batch."


def _at(tally: Tally) -> str:
    return "" if tally.step is None else f"Step {tally.step}: "
