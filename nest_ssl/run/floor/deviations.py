"""How far the tensors of repeated steps lie from the recorded ones, over all repeats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from nest_ssl.compare.bits import as_real, chunks, same_bits
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import FloorEntry, Place
from nest_ssl.run.floor.values import Update

PIECE = 1 << 16  # elements summed at a time: what fits the cache in float64
TURNED = 2  # elements of a weight that may be rounded the other way, whatever the repeats show
Values = Iterable[tuple[Address, Tensor | Update]]
Measured = tuple[float, float, float, int]  # Frobenius norms of the recorded one and the difference, largest, flips


@dataclass
class Deviations:
    """Of one tensor, a value for each repeat."""

    norm: float
    least: float = 0.0  # Frobenius, below which the floor never is
    relative: list[float] = field(default_factory=list)
    max_abs: list[float] = field(default_factory=list)
    flips: list[int] = field(default_factory=list)


class Tally:
    """Collects the deviations of one step over its repeats, of which the first has changed nothing.

    What a discrete value that became another one does to what is behind it is no rounding: of such repeats nothing
    counts but how far they moved each tensor. The floor is of the others, however few there are.
    """

    def __init__(self) -> None:
        self._of: dict[Address, Deviations] = {}
        self.compared = 0
        self.differing: list[int] = []  # of each repeat, how many tensors had other bits
        self.flipped: list[bool] = []  # of each repeat, whether a discrete value became another
        self.held_out: list[bool] = []  # of each, whether it checks the floor that others make

    def add(self, recorded: Values, repeated: Values, held_out: bool = False, behind: bool = False) -> bool:
        """One more repeat.

        A tensor of another shape is infinitely far away, and what made it so is no rounding.

        Args:
            held_out: it checks the floor and makes none.
            behind: a discrete value became another one before this step.

        Returns:
            whether one did before it or in it.

        Raises:
            ValueError: it has other tensors than were recorded.
        """
        found: dict[tuple[object, ...], Measured | None] = {}  # a tensor in many places is measured once
        self.compared, differing, flipped = 0, 0, behind
        rounded = 0.0
        for (address, tensor), (other_address, other) in zip(recorded, repeated, strict=True):
            if address != other_address or tensor.dtype != other.dtype:
                raise ValueError(f"{other_address} of a repeated step is not {address} of the recorded one")
            parts = (t for one in (tensor, other) for t in (one if isinstance(one, Update) else [one]))
            key = (tensor.dtype, *((t.data_ptr(), t.shape, t.stride()) for t in parts))
            if key not in found:
                found[key] = None if _alike(tensor, other) else _measure(tensor, other)
            measured = found[key]
            entry = self._of.get(address)
            if entry is None:
                norm = measured[0] if measured else _measure(tensor, tensor)[0]
                if address.kind == Kind.PARAMETER and isinstance(tensor, Tensor):  # its update comes next
                    rounded = rounding_of_a_sum(tensor)
                least = rounded if address.kind in (Kind.PARAMETER, Kind.UPDATE) else 0.0
                entry = self._of[address] = Deviations(norm, least)
            _, distance, largest, flips = measured or (0.0, 0.0, 0.0, 0)
            entry.relative.append(distance / entry.norm if entry.norm else math.inf if distance else 0.0)
            entry.max_abs.append(largest)
            entry.flips.append(flips)
            self.compared, differing, flipped = (
                self.compared + 1,
                differing + (measured is not None),
                flipped or flips > 0,
            )
        self.differing.append(differing)
        self.flipped.append(flipped)
        self.held_out.append(held_out)
        return flipped

    @property
    def making(self) -> list[int]:
        """The repeats that make the floor, by number: in none of them a discrete value became another one."""
        return [one for one in range(1, len(self.flipped)) if not self.flipped[one] and not self.held_out[one]]

    def entries(self) -> list[FloorEntry]:
        """The floor of every tensor; none where a discrete value became another one in every repeat."""
        repeats, making = range(1, len(self.flipped)), self.making
        flipped = [repeat for repeat in repeats if self.flipped[repeat]]
        checking = [repeat for repeat in repeats if self.held_out[repeat] and not self.flipped[repeat]]
        entries = []
        for address, found in self._of.items() if making else ():
            relative, max_abs = ([values[repeat] for repeat in making] for values in (found.relative, found.max_abs))
            entry = FloorEntry(
                place=Place.of(address),
                norm=found.norm,
                relative_largest=max(*relative, found.least / found.norm if found.norm else 0.0),
                relative_typical=median(relative),
                max_abs_largest=max(max_abs),
                max_abs_typical=median(max_abs),
                held_out=max((found.relative[repeat] for repeat in checking), default=0.0),
                flips=max(found.flips),
                relative_flipped=max((found.relative[repeat] for repeat in flipped), default=0.0),
            )
            entries.append(entry)
        return entries


def rounding_of_a_sum(tensor: Tensor) -> float:
    """What it does to a weight to be rounded after an update: that a few elements go the other way, by one ulp.

    It happens to an element in thousands, so that few repeats show it, and then outweighs all else: an update at
    warm-up is no larger than some ulps of its weight. The Frobenius norm of `TURNED` of the largest such steps.
    """
    largest = float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
    if not 0 < largest < math.inf:
        return 0.0
    ulp = torch.finfo(tensor.dtype).eps * 2.0 ** math.floor(math.log2(largest))
    return math.sqrt(min(TURNED, tensor.numel())) * ulp


def _alike(recorded: Tensor | Update, repeated: Tensor | Update) -> bool:
    if recorded.shape != repeated.shape:
        return False
    if isinstance(recorded, Tensor) and isinstance(repeated, Tensor):
        return same_bits(recorded, repeated)
    return all(same_bits(piece, other) for piece, other in _pieces(recorded, repeated))


def _pieces(recorded: Tensor | Update, repeated: Tensor | Update) -> Iterator[tuple[Tensor, Tensor]]:
    """Of both the same elements, so many at a time as fit the cache; of updates in float64."""
    if isinstance(recorded, Update) and isinstance(repeated, Update):
        flat = [t.reshape(-1) for t in (*recorded, *repeated)]
        small = recorded.after.numel() <= PIECE  # as most are: to split them would take longer than to measure them
        for one, one_before, other, other_before in (
            [flat] if small else zip(*(torch.split(t, PIECE) for t in flat), strict=True)
        ):
            yield one.double().sub_(one_before), other.double().sub_(other_before)
    elif isinstance(recorded, Tensor) and isinstance(repeated, Tensor):
        one, other = as_real(recorded), as_real(repeated)
        if one.numel() <= PIECE:
            yield one.reshape(-1), other.reshape(-1)
        else:
            yield from chunks(one, other, PIECE)


def _measure(recorded: Tensor | Update, repeated: Tensor | Update) -> Measured:
    """Of whole numbers only flips are counted; where not both are finite, the difference is infinite."""
    if isinstance(recorded, Tensor) and isinstance(repeated, Tensor):
        if recorded.shape != repeated.shape:
            return float(torch.linalg.vector_norm(recorded.double())), math.inf, math.inf, 1
        if not (recorded.is_floating_point() or recorded.is_complex()):
            return float(torch.linalg.vector_norm(recorded.double())), 0.0, 0.0, int((recorded != repeated).sum())
    squares, distances, largest = 0.0, 0.0, 0.0
    for piece, other in _pieces(recorded, repeated):
        one = piece.double()
        difference = other.double() - one  # not in place: of a double, `double` is the tensor itself
        square, distance = float(one.dot(one)), float(difference.dot(difference))
        if not math.isfinite(square + distance):  # NaN and infinity in the same places are no difference
            finite = torch.isfinite(piece) & torch.isfinite(other)
            unlike = (piece != other) & ~(piece.isnan() & other.isnan()) & ~finite
            one, difference = (torch.where(finite, values, 0) for values in (one, difference))
            square, distance = float(one.dot(one)), float(difference.dot(difference))
            distance = math.inf if unlike.any() else distance
        squares, distances = squares + square, distances + distance
        bounds = torch.aminmax(difference) if difference.numel() else ()
        largest = max([largest, *(abs(float(bound)) for bound in bounds)])
    return math.sqrt(squares), math.sqrt(distances), largest, 0
