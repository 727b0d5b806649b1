"""Which parameters and buffers of two recordings belong together, by values, shapes and names: a draft of a map."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from torch import Tensor

from nest_ssl.recording.reader import Recording
from nest_ssl.recording.tensors import tensor_digest

NEAREST = 3
ALIKE = 0.5  # of two names, by difflib: less is no likeness


@dataclass(frozen=True, slots=True)
class LeftOver:
    """A parameter or buffer that only one side has.

    Args:
        side: ``reference`` or ``candidate``.
        nearest: those of the other side that are left over too: of the same values, then of the same shape.
    """

    side: str
    name: str
    shape: list[int]
    nearest: list[str]


def left_over(reference: Recording, candidate: Recording) -> list[LeftOver]:
    """What only one side has; the candidate under the reference's names."""
    one, other = reference.initial_weights(), candidate.initial_weights()
    apart = {n: t for n, t in one.items() if n not in other}, {n: t for n, t in other.items() if n not in one}
    found = []
    for side, here, there in (("reference", *apart), ("candidate", *apart[::-1])):
        for name, tensor in here.items():
            ranked = sorted(there, key=lambda n, t=tensor, m=name: -_likeness(m, t, n, there[n]))  # type: ignore[misc]
            near = [n for n in ranked[:NEAREST] if sorted(there[n].shape) == sorted(tensor.shape)]
            found.append(LeftOver(side, name, list(tensor.shape), near))
    return found


def suggest(reference: Recording, candidate: Recording) -> dict[str, Any]:
    """A map from the candidate's names to the reference's: equal values first, then shapes and names.

    Names that follow one pattern are one line; what has no partner is not in it, and `left_over` lists it.
    """
    pairs = pairs_of(reference.initial_weights(), candidate.initial_weights())
    plain = {name: target for name, (target, transposed) in pairs.items() if not transposed}
    drafted = _patterns(shortened(plain))
    turned = {name: target for name, (target, transposed) in pairs.items() if transposed}
    return drafted | {name: {"to": target, "transpose": True} for name, target in _patterns(turned).items()}


def pairs_of(reference: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> dict[str, tuple[str, bool]]:
    """Of each name of the candidate the reference's, and whether it is transposed."""
    pairs: dict[str, tuple[str, bool]] = {}
    left, wanting = dict(reference), dict(candidate)

    def take(name: str, target: str, transposed: bool = False) -> None:
        pairs[name] = target, transposed
        del left[target], wanting[name]

    for name in [n for n in wanting if n in left and left[n].shape == wanting[n].shape]:
        take(name, name)
    for transposed in (False, True):
        digests: dict[str, list[str]] = defaultdict(list)
        for target, tensor in left.items():
            digests[tensor_digest(tensor)].append(target)
        for name, tensor in [*wanting.items()]:
            turned = tensor.t() if transposed and tensor.dim() == 2 else tensor
            same = [target for target in digests[tensor_digest(turned)] if target in left]
            same = [target for target in same if left[target].shape == turned.shape]
            if same and (transposed <= (tensor.dim() == 2)):
                take(name, max(same, key=lambda target, n=name: _alike(n, target)), transposed)  # type: ignore[misc]
    # Zeros and ones are alike everywhere, and another framework draws its own: names decide, the likest first.
    likely = [(_alike(n, t), n, t) for n in wanting for t in left if wanting[n].shape == left[t].shape]
    for likeness, name, target in sorted(likely, key=lambda one: -one[0]):
        if likeness >= ALIKE and name in wanting and target in left:
            take(name, target)
    return pairs


def shortened(pairs: Mapping[str, str]) -> dict[str, str]:
    """Pairs of whole names, shortened while all that lies below the shorter ones goes along."""
    found = dict(pairs)
    for name in pairs:
        one, other = name, pairs[name]
        while "." in one and "." in other and one.rpartition(".")[2] == other.rpartition(".")[2]:
            shorter, target = one.rpartition(".")[0], other.rpartition(".")[0]
            below = [n for n in pairs if n.startswith(f"{shorter}.")]
            if any(pairs[n] != target + n[len(shorter) :] for n in below):
                break
            one, other = shorter, target
        if one != name:
            found = {n: t for n, t in found.items() if n != name} | {one: other}
    return {name: target for name, target in found.items() if name != target}


def _patterns(pairs: Mapping[str, str]) -> dict[str, str]:
    """Numbers in names as holes, where all names of the pattern go to the same one of the reference."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, target in pairs.items():
        groups[with_hole(name, target)].append(name)
    drafted: dict[str, str] = {}
    for (pattern, goal), names in groups.items():
        alone = sum(1 for other, _ in groups if other == pattern) == 1
        together = len(names) > 1 and alone
        drafted |= {pattern: goal} if together else {name: pairs[name] for name in names}
    return drafted


def with_hole(name: str, target: str) -> tuple[str, str]:
    """The first number that stands in both, as ``{i}``."""
    for part in name.split("."):
        if part.isdecimal() and part in target.split("."):
            hole = re.compile(rf"(?<![^.]){part}(?![^.])")
            return hole.sub("{i}", name, count=1), hole.sub("{i}", target, count=1)
    return name, target


def _likeness(name: str, tensor: Tensor, other_name: str, other: Tensor) -> float:
    """For an order: the same values, then the same shape, then one with its dimensions exchanged, then names."""
    same_shape = tensor.shape == other.shape
    same = same_shape and tensor_digest(tensor) == tensor_digest(other)
    turned = sorted(tensor.shape) == sorted(other.shape)
    return 8 * same + 4 * same_shape + 2 * turned + _alike(name, other_name)


def _alike(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other, autojunk=False).ratio()
