"""Rung 5: random draws. Which stage drew how many numbers from which generator, on both sides.

A recording's ledger is, for each generator, a chain of states: every entry starts where the one before it ended. Two
sides that make the same draws walk through the same states, whatever they call the stage that draws and however they
divide the draws between calls, so chains are matched by their states first. Where they part for good, the rest is
matched by stage, so that the draw that is to blame stands apart from those that merely came in with another state.

Recordings made before there were ledgers are judged by the digests that they have, of the states at the boundaries of
each step; those are compared in any case, since a stream from which nothing is drawn may still differ.

A model on another kind of device draws from another generator, which gives other numbers for the same seed: what its
calls draw there is not compared, and shows in what they make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TypeVar

from nest_ssl.base.nested import ABSENT, pairs
from nest_ssl.compare.findings import Difference, Draw, Fate, Stage
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.calls import Call
from nest_ssl.recording.clock import Part, Phase
from nest_ssl.recording.index import DrawEntry, Generators, Index, StepRandom

B = TypeVar("B", bound=str)  # the name of a boundary
Ledger = Sequence[DrawEntry]
CPU, CUDA = "torch_cpu", "torch_cuda"  # what names of generators begin with
UNCOUNTED = "uncounted"  # too many to count, or the generator was seeded between


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a ledger; `event` is on the reference's clock."""

    stage: Stage
    event: float
    draws: int | None
    before: str
    after: str


_Chain = Sequence[_Entry]
_Match = tuple[_Chain, _Chain]  # the reference's, the candidate's


def compare_draws_before_the_steps(sheet: Sheet, reference: Index, candidate: Index) -> list[Draw]:
    """Building the model and starting to fit."""
    apart = reference.device.type != candidate.device.type
    draws = compare_ledgers(sheet, _comparable(reference.ledger, apart), _comparable(candidate.ledger, apart))
    _compare_states(sheet, reference.rng, candidate.rng, (CUDA,) if apart else ())
    sheet.tally.findings.sort(key=lambda finding: finding.moment)
    return draws


def compare_draws_of_step(
    sheet: Sheet,
    reference: StepRandom,
    candidate: StepRandom,
    event: Callable[[int], float],
    other_device: bool = False,
) -> list[Draw]:
    """One step.

    Args:
        event: puts an event of the candidate on the reference's clock, see `same_event`.
        other_device: whether the two models were on devices of another kind.
    """
    one, other = (_comparable(side.ledger, other_device) for side in (reference, candidate))
    draws = compare_ledgers(sheet, one, other, event)
    _compare_states(sheet, reference.states, candidate.states, (CPU, CUDA) if other_device else ())
    if reference.loader_workers or candidate.loader_workers:
        sheet.note("loader_workers", reference=reference.loader_workers, candidate=candidate.loader_workers)
    return draws


def same_event(reference: Sequence[Call], candidate: Sequence[Call]) -> Callable[[int], float]:
    """From an event of the candidate to the reference's: the same start or end of the same call.

    What only the candidate has happens at whatever comes next; without calls events are left as they are.
    """
    events = [
        {(call.module, call.call, end): (call.end if end else call.start) for call in calls for end in (False, True)}
        for calls in (reference, candidate)
    ]
    last: float = len(events[0])
    mapped: dict[int, float] = {}
    for place, event in sorted(events[1].items(), key=lambda item: -item[1]):
        last = mapped[event] = events[0].get(place, last)
    return lambda event: mapped.get(event, len(events[0])) if mapped else event


def compare_ledgers(
    sheet: Sheet,
    reference: Ledger | None,
    candidate: Ledger | None,
    event: Callable[[int], float] = float,
) -> list[Draw]:
    """The draws of both sides in order of execution; none where a side has no ledger (an older recording)."""
    if reference is None or candidate is None:
        if reference is not candidate:
            sheet.note("no_ledger", side="reference" if reference is None else "candidate")
        return []
    found = []
    for generator in dict.fromkeys(entry.generator for entry in [*reference, *candidate]):
        chains = _chain(reference, generator, float), _chain(candidate, generator, event)
        found += [_draw(sheet, generator, *match) for match in _matches(*chains)]
    found.sort(key=lambda draw: draw.moment)
    for draw in found:
        sheet.item("stages", [draw.finding] if draw.finding else [])
    moved = [draw for draw in found if draw.fate == Fate.ELSEWHERE]
    if moved:
        stages = {"reference": moved[0].reference[0], "candidate": moved[0].candidate[0]}
        sheet.note("drawn_elsewhere", step=sheet.tally.step, count=len(moved), **stages)
    return found


def _comparable(ledger: Ledger | None, other_device: bool) -> Ledger | None:
    """Without what torch's generators gave to the training step, where the two are not of one kind."""
    if ledger is None or not other_device:
        return ledger
    on_the_host = ("before_model", "model_construction", "fit_start", "fetch")  # whatever the model's device is
    kept = [entry for entry in ledger if not entry.generator.startswith(CUDA)]
    return [entry for entry in kept if entry.phase in on_the_host or not entry.generator.startswith(CPU)]


def _compare_states(
    sheet: Sheet, reference: Mapping[B, Generators], candidate: Mapping[B, Generators], but: tuple[str, ...]
) -> None:
    """The digests of every generator's state at the boundaries that either side recorded, `but` these generators."""
    for boundary, one, other in pairs(reference, candidate):
        phase = Phase.__members__.get(boundary.upper(), Phase.AFTER_MODEL)
        for generator, state, other_state in pairs({} if one is ABSENT else one, {} if other is ABSENT else other):
            if generator.startswith(but):
                continue
            spot = sheet.spot(Address(Kind.GENERATOR_STATE, slot=generator), phase)
            sheet.pair("random states", spot, state, other_state)


# --- matching two chains ----------------------------------------------------------------------------------------------


def _chain(ledger: Ledger, generator: str, event: Callable[[int], float]) -> _Chain:
    return [
        _Entry(Stage(e.phase, e.module, e.call or 0), event(e.event), e.draws, e.before, e.after)
        for e in ledger
        if e.generator == generator
    ]


def _matches(reference: _Chain, candidate: _Chain) -> Iterator[_Match]:
    while reference and candidate and reference[0].before == candidate[0].before:
        count = other_count = 1  # after so many entries both are in the same state again
        if reference[0].after != candidate[0].after:
            reached = {entry.after: place for place, entry in reversed(list(enumerate(candidate, 1)))}
            count = next((place for place, entry in enumerate(reference, 1) if entry.after in reached), 0)
            if not count:
                break
            other_count = reached[reference[count - 1].after]
        one, other = reference[:count], candidate[:other_count]
        reference, candidate = reference[count:], candidate[other_count:]
        stages = {entry.stage for entry in one}
        if len(stages) > 1 and stages == {entry.stage for entry in other}:
            # The same draws in all, but the same few stages divide them otherwise: one of them drew another count.
            yield from _by_stage(one, other)
        else:  # Other stages only make them elsewhere: say, by a dropout that is no module of its own.
            yield one, other
    yield from _by_stage(reference, candidate)


def _by_stage(reference: _Chain, candidate: _Chain) -> Iterator[_Match]:
    """Entries of two chains that have parted, matched by the names of their stages."""
    stages, others = ([entry.stage for entry in side] for side in (reference, candidate))
    for kind, i, i_end, j, j_end in SequenceMatcher(None, stages, others, autojunk=False).get_opcodes():
        one, other = reference[i:i_end], candidate[j:j_end]
        if kind == "equal":
            yield from (([a], [b]) for a, b in zip(one, other, strict=True))
        elif one and other:  # other stages between two that both have: nothing says which of them is which
            yield one, other
        else:
            yield from (([entry], []) for entry in one)
            yield from (([], [entry]) for entry in other)


def _total(entries: _Chain) -> int | None:
    """What these entries drew in all; None if one of them was not counted."""
    draws = [entry.draws for entry in entries if entry.draws is not None]
    return sum(draws) if len(draws) == len(entries) else None


def _draw(sheet: Sheet, generator: str, reference: _Chain, candidate: _Chain) -> Draw:
    """What became of one match: its fate, and the finding where it is a difference."""
    first = (reference or candidate)[0]
    name, module = first.stage.phase.upper(), first.stage.module
    phase = Phase.FORWARD if name == "LOSS" else Phase.__members__.get(name, Phase.FORWARD)  # the code around it, too
    late = phase == Phase.FETCH and not generator.startswith("torch")  # a loader first draws its order, with torch
    address = Address(Kind.DRAW, module, None if module is None else first.stage.call, generator)
    spot = sheet.spot(address, phase, first.event + 0.5 * late, Part.DRAW)
    both = bool(reference and candidate)
    came_in = both and reference[0].before != candidate[0].before
    draws = _total(reference), _total(candidate)
    finding = None
    if not both or draws[0] != draws[1]:
        fate = Fate.OTHER_COUNT if both else Fate.ONE_SIDED
        finding = spot.finding(Difference.DRAWS, *(UNCOUNTED if count is None else count for count in draws))
    elif came_in:
        fate = Fate.CAME_IN
        finding = spot.finding(Difference.STATE, reference[0].before, candidate[0].before)
    elif reference[-1].after != candidate[-1].after:
        fate = Fate.LEFT_OTHERWISE
        finding = spot.finding(Difference.STATE, reference[-1].after, candidate[-1].after)
    else:
        same = len(reference) == len(candidate) == 1 and reference[0].stage == candidate[0].stage
        fate = Fate.SAME if same else Fate.ELSEWHERE
    stages, others = (tuple(dict.fromkeys(entry.stage for entry in side)) for side in (reference, candidate))
    return Draw(spot.moment, sheet.tally.rank, generator, stages, others, draws, fate, came_in, finding)
