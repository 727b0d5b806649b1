"""Two recordings at level `digest`, compared over many steps: where the first bit differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nest_ssl.base.errors import UserError
from nest_ssl.recording.address import Address
from nest_ssl.recording.digests import Fingerprint, digest_steps, digests
from nest_ssl.recording.reader import Recording


@dataclass(frozen=True, slots=True)
class DigestDifference:
    """The first tensor that differs, in the reference's order of execution.

    Args:
        step, address: where.
        reference, candidate: what each side has there; None: nothing.
        compared, differing: tensors of that step.
    """

    step: int
    address: Address
    reference: Fingerprint | None
    candidate: Fingerprint | None
    compared: int
    differing: int


@dataclass(frozen=True, slots=True)
class DigestComparison:
    """Both sides over the steps that both have hashes of.

    Args:
        steps: that were compared, as far as the first one that differs.
        tensors: that were compared in them.
        first: None: all of them have the same bits.
    """

    steps: Sequence[int]
    tensors: int
    first: DigestDifference | None


def compare_digests(reference: Recording, candidate: Recording) -> DigestComparison:
    """Compare step by step, and stop behind the first step that differs: what follows has other weights.

    Raises:
        UserError: there is no step that both have hashes of, or a file is damaged.
    """
    shared = sorted({*digest_steps(reference)} & {*digest_steps(candidate)})
    if not shared:
        fix = "Record both with record=digest and the same save_steps, as nest-ssl bisect does."
        raise UserError("no step of which both have hashes", f"{reference.path} and {candidate.path}", fix)
    compared: list[int] = []
    tensors = 0
    for step in shared:
        one, other = digests(reference, step), digests(candidate, step)
        places = [*one, *(place for place in other if place not in one)]
        compared.append(step)
        tensors += len(places)
        differing = [place for place in places if not _same(one.get(place), other.get(place))]
        if differing:
            place = differing[0]
            both = one.get(place), other.get(place)
            return DigestComparison(
                compared, tensors, DigestDifference(step, place, *both, len(places), len(differing))
            )
    return DigestComparison(compared, tensors, None)


def _same(one: Fingerprint | None, other: Fingerprint | None) -> bool:
    return one is not None and other is not None and one.same(other)
