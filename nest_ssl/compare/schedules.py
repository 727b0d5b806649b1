"""Learning rates of two sides over many steps, worked out without training: where they part, and in which way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nest_ssl.base.errors import UserError
from nest_ssl.recording.evidence import LearningRates, Rates, Schedule, seal_of
from nest_ssl.recording.reader import Recording

ROUNDING = 1e-12  # relative: a few units in the last place of float64, in which rates are computed
SHIFTS = (-1, 1, -2, 2)  # steps that a schedule may run ahead, tried in this order
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RateDifference:
    """Two courses of rates that are not the same numbers.

    Args:
        longer: whether they are those planned for as many steps, and not those of the run as it is configured.
        steps, differing: optimizer steps compared; of those, steps with another rate.
        first: the first of these; -1 where the sides have another number of courses: no more is said then. Groups of
            parameters that have the same rates throughout are one course where one side has more groups.
        group: the first parameter group that has another rate there.
        reference, candidate: its rates there.
        largest, worst: the largest relative difference, and the step that has it; up to `ROUNDING` it may be no more
            than another order of the same products.
        factor: candidate over reference, where that is the same number in all steps and groups.
        shift: steps by which the candidate runs ahead, where its rates are the reference's of that other step.
        schedulers: classes of both sides.
    """

    longer: bool
    steps: int
    differing: int = 0
    first: int = -1
    group: int = 0
    reference: float = 0.0
    candidate: float = 0.0
    largest: float = 0.0
    worst: int = 0
    factor: float | None = None
    shift: int | None = None
    schedulers: tuple[str, str] = ("", "")


def compare_rates(reference: LearningRates, candidate: LearningRates) -> list[RateDifference]:
    """Where two sides' rates differ: as configured, then as planned for as many steps where both have that.

    Classes may differ: the rates decide.
    """
    courses: list[tuple[bool, Rates, Rates]] = [(False, reference, candidate)]
    if reference.longer and candidate.longer:
        courses.append((True, reference.longer, candidate.longer))
    found = (_compare(longer, one, other) for longer, one, other in courses)
    return [difference for difference in found if difference]


def bind_rates(source: Recording, side: str, reference: Recording, candidate: Recording) -> Schedule:
    """The learning rates that a run recorded, as evidence about a pair of recordings.

    Args:
        source: made with `learning_rates`, of the same experiment as that side's recording.
        side: ``reference`` or ``candidate``.

    Raises:
        UserError: it has none.
    """
    rates = source.learning_rates()
    if rates is None:
        raise UserError("no learning rates were recorded", str(source.path), "Record again with learning_rates=100000.")
    seals: dict[str, Any] = {"reference": seal_of(reference.index), "candidate": seal_of(candidate.index)}
    return Schedule(side=side, seconds=source.index.duration_s, **seals, **dict(rates))


def _compare(longer: bool, one: Rates, other: Rates) -> RateDifference | None:
    rates = [np.array(side.rates, dtype=np.float64).reshape(len(side.steps), -1) for side in (one, other)]
    steps = min(map(len, rates))
    reference, candidate = (array[:steps] for array in rates)
    if reference.shape != candidate.shape:
        reference, candidate = (np.unique(array, axis=1) for array in (reference, candidate))
    classes = one.scheduler, other.scheduler
    if reference.shape != candidate.shape:
        return RateDifference(longer, steps, schedulers=classes)
    unlike = ~((reference == candidate) | (np.isnan(reference) & np.isnan(candidate)))
    if not unlike.any():
        return None
    first, group = map(int, np.argwhere(unlike)[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(unlike, np.nan_to_num(np.abs(candidate / reference - 1), nan=np.inf), 0.0)
    factor = None
    if np.isfinite(candidate).all() and (reference > 0).all():
        ratios = candidate / reference
        factor = float(ratios.mean()) if np.ptp(ratios) <= ROUNDING * abs(ratios.mean()) else None
    return RateDifference(
        longer,
        steps,
        differing=int(unlike.any(axis=1).sum()),
        first=one.steps[first],
        group=group,
        reference=float(reference[first, group]),
        candidate=float(candidate[first, group]),
        largest=float(relative.max()),
        worst=one.steps[int(relative.max(axis=1).argmax())],
        factor=factor,
        shift=_shift(reference, candidate),
        schedulers=classes,
    )


def _shift(reference: Array, candidate: Array) -> int | None:
    """By how many steps the candidate runs ahead, where that makes all rates the same that both sides have."""
    for shift in SHIFTS:
        late, early = (reference, candidate) if shift > 0 else (candidate, reference)
        ahead, behind = late[abs(shift) :], early[: -abs(shift)]
        if len(ahead) and np.array_equal(ahead, behind):
            return shift
    return None
