"""The causal clock: a moment sorts by what happens first, so that what may have caused a thing stands before it.

The recorder stamps what it writes; the comparer sorts by the stamps. The order of a run and of a step is stated here
and nowhere else.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

BEFORE_STEPS = -1  # the step of what comes before the first one


class Phase(IntEnum):
    """The parts of a run and of a step, in causal order.

    A boundary (``*_READY``, ``*_DONE``, ``BEFORE_*``, ``AFTER_*``) holds states of generators only, and comes last of
    what it closes.
    """

    # Before the steps. Initial weights come before the draws that made them: a weight that differs is the plainer
    # fact, and the count of numbers drawn is what explains it.
    CONTRACT = 0
    STRUCTURE = 1
    BEFORE_MODEL = 2
    INITIAL_WEIGHTS = 3
    MODEL_CONSTRUCTION = 4
    AFTER_MODEL = 5
    FIT_START = 6
    BEFORE_FIRST_BATCH = 7
    # Of every step. Validation runs between two steps, and what it draws or leaves is met by the step behind it.
    VALIDATION = 10
    STEP_START = 11  # weights and modes as the step finds them
    FETCH = 12
    BATCH = 13
    BATCH_READY = 14
    FORWARD = 15  # the training step: all calls of modules, and the code around them
    FORWARD_DONE = 16
    LOSS = 17
    BACKWARD = 18
    GRADIENTS = 19
    BACKWARD_DONE = 20
    OPTIMIZER_INPUT = 21  # gradients after clipping, settings, and the state that it goes on from
    OPTIMIZER_STEP = 22
    SCHEDULE = 23  # settings of the next step: a plainer fact than values
    AFTER_STEP = 24
    STEP_DONE = 25


class Part(IntEnum):
    """What comes first of several things at one event."""

    DRAW = 0  # made in the stretch that ends with the event
    VALUE = 1


class Moment(NamedTuple):
    """When something is, or was drawn: moments sort in causal order.

    Args:
        step: the training batch, from 0; `BEFORE_STEPS` for what comes before all of them.
        phase: see `Phase`.
        event: in the forward the number of starts and ends of calls before it; in the backward the number of output
            gradients that had arrived; 0 elsewhere.
        part: see `Part`.
    """

    step: int
    phase: Phase
    event: float = 0
    part: Part = Part.VALUE
