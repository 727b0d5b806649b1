"""Two sequences of operators, side by side where they are the same or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from nest_ssl.recording.evidence import Operator

Tokens = tuple[str, str, str]  # name, arguments, tensors; typed as written: 1, 1.0 and True are three
MOST_CELLS = 1_000_000  # of a table of two sequences; longer ones are aligned by their names alone
SAME, OTHER_TENSORS, OTHER_ARGUMENTS = 5, 4, 2  # what a pair is worth


def aligned(
    reference: Sequence[Operator], candidate: Sequence[Operator]
) -> list[tuple[Operator | None, Operator | None]]:
    """The operators of both sides in order, those of one name side by side where that makes the best fit of all."""
    one, other = list(map(tokens, reference)), list(map(tokens, candidate))
    first = shared_start(one, other)
    last = shared_start(one[first:][::-1], other[first:][::-1])
    ends = len(one) - last, len(other) - last
    middle = best_fit(one[first : ends[0]], other[first : ends[1]])
    return [
        *zip(reference[:first], candidate[:first], strict=True),
        *(
            (None if i is None else reference[first + i], None if j is None else candidate[first + j])
            for i, j in middle
        ),
        *zip(reference[ends[0] :], candidate[ends[1] :], strict=True),
    ]


def shared_start(one: Sequence[Tokens], other: Sequence[Tokens]) -> int:
    """How long two sequences are the same."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def best_fit(one: Sequence[Tokens], other: Sequence[Tokens]) -> list[tuple[int | None, int | None]]:
    """Indices of two sequences side by side, None where one has no partner: the alignment that is worth most.

    Source: Needleman and Wunsch 1970, with no cost of a gap.
    """
    if len(one) * len(other) > MOST_CELLS:
        return by_name(one, other)
    best = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i in range(len(one) - 1, -1, -1):
        row, below = best[i], best[i + 1]
        for j in range(len(other) - 1, -1, -1):
            worth = worth_of(one[i], other[j])
            row[j] = max(below[j], row[j + 1], below[j + 1] + worth if worth else 0)
    found: list[tuple[int | None, int | None]] = []
    i = j = 0
    while i < len(one) and j < len(other):
        worth = worth_of(one[i], other[j])
        if worth and best[i][j] == best[i + 1][j + 1] + worth:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            found.append((i, None))
            i += 1
        else:
            found.append((None, j))
            j += 1
    return [*found, *((k, None) for k in range(i, len(one))), *((None, k) for k in range(j, len(other)))]


def by_name(one: Sequence[Tokens], other: Sequence[Tokens]) -> list[tuple[int | None, int | None]]:
    """The same for long sequences, by their longest common stretches."""
    found: list[tuple[int | None, int | None]] = []
    matcher = SequenceMatcher(None, [t[0] for t in one], [t[0] for t in other], autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            found += zip(range(a, b), range(c, d), strict=True)
        else:
            found += [*((i, None) for i in range(a, b)), *((None, j) for j in range(c, d))]
    return found


def worth_of(one: Tokens, other: Tokens) -> int:
    if one[0] != other[0]:
        return 0
    return OTHER_ARGUMENTS if one[1] != other[1] else OTHER_TENSORS if one[2] != other[2] else SAME


def tokens(operator: Operator) -> Tokens:
    return operator.name, repr(operator.arguments), repr((operator.tensors, operator.outputs))
