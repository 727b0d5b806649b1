"""What the pictures of a report show: plain data, taken from a comparison and its recordings; nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from nest_ssl.compare.findings import Finding, RungName
from nest_ssl.compare.operators import OperatorDifference

Grid = np.ndarray[Any, np.dtype[Any]]


class State(str, Enum):
    """Of a module or a call, from good to bad; each has a colour, a mark and a word."""

    SAME = "same"  # the same bits
    ROUNDING = "rounding"  # within what the rule allows
    CAME_IN = "came in"  # differs, and is not to blame
    MISSING = "missing"  # on one side
    BORN = "born"  # a difference begins here


SEVERITY = tuple(State)


@dataclass(slots=True)
class Node:
    """One module.

    Args:
        name, own: dotted, and its last part; of the root both are empty.
        kind: its class on the reference's side.
        state, worst: its own, and the worst of it and of everything inside.
        function: what replay says of its function; empty where it was not had.
        forward, gradient: the largest relative difference of its outputs and of its parameters' gradients.
    """

    name: str
    own: str
    kind: str
    state: State = State.SAME
    worst: State = State.SAME
    function: str = ""
    forward: float | None = None
    gradient: float | None = None
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CallPoint:
    """One call of the strip.

    Args:
        order: its place among all calls of the step, by their start, from 0.
        error: relative difference of its output, Frobenius; 0 where the bits are the same, None where it has no size.
        floor: what rounding alone does to it, relative; None where it was not measured.
        relation: how it came to differ, see `compare.findings.Relation`; empty where it does not.
    """

    order: int
    module: str
    call: int
    state: State
    error: float | None
    floor: float | None
    relation: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """The forward of one step, call by call in the order in which the reference's end."""

    step: int
    calls: tuple[CallPoint, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """What changes over steps.

    Args:
        losses: of each step the reference's and the candidate's.
        deviations: by rung, of each step the largest relative difference; 0 where the bits are the same, None where it
            has no size.
    """

    steps: tuple[int, ...]
    losses: tuple[tuple[float | None, float | None], ...]
    deviations: dict[RungName, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One element of the tensor that differs first, on both sides."""

    index: tuple[int, ...]
    reference: float | int | bool
    candidate: float | int | bool


@dataclass(frozen=True, slots=True)
class TensorView:
    """The tensor that differs first.

    Args:
        reference, candidate: the plane of its last two axes through the largest difference, thinned to what a picture
            can show, of shape [R, C].
        difference: the same of |candidate - reference|; of elements that share a point the largest.
        at: row and column of the largest difference in these.
        plane: rows and columns of the whole plane.
        neighbours: elements around the largest difference along the last two axes.
        edges, counts: histogram of log10 |candidate - reference| over the whole tensor; `same` elements have the same
            bits or no finite difference.
    """

    finding: Finding
    reference: Grid
    candidate: Grid
    difference: Grid
    at: tuple[int, int]
    plane: tuple[int, int]
    neighbours: tuple[Neighbour, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    same: int


@dataclass(frozen=True, slots=True)
class LayerRatios:
    """Norms of parameter gradients of one layer, the candidate's over the reference's.

    Args:
        parameters, differing: how many it has, and how many have other gradients.
        low, median, high: ratios; None where none has a meaning.
        largest: the largest relative difference.
    """

    layer: str
    parameters: int
    differing: int
    low: float | None
    median: float | None
    high: float | None
    largest: float | None


@dataclass(frozen=True, slots=True)
class Gradients:
    step: int
    layers: tuple[LayerRatios, ...]


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance of a batch, as the model saw it.

    Args:
        number: its place in the batch.
        log_mel: of shape [D, T].
        masked: of each frame whether it is masked, of shape [T].
        tokens: the reference's and the candidate's, each of shape [S].
    """

    step: int
    number: int
    log_mel: Grid
    masked: Grid
    tokens: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(slots=True)
class Pictures:
    """All of them; None or empty where there is nothing to show."""

    tree: Node | None = None
    strip: Strip | None = None
    curves: Curves | None = None
    tensor: TensorView | None = None
    gradients: Gradients | None = None
    utterances: list[Utterance] = field(default_factory=list)
    operators: list[OperatorDifference] = field(default_factory=list)
