"""Two recordings at level `digest`, compared over many steps: where the first bit differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nest_ssl.base.errors import UserError
from nest_ssl.recording.address import Address
from nest_ssl.recording.digests import SHA256, Fingerprint, digest_steps, digests
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
        UserError: there is no step that both have hashes of, these are of two kinds, or a file is damaged.
    """
    sides = reference, candidate
    shared = sorted({*digest_steps(reference)} & {*digest_steps(candidate)})
    if not shared:
        fix = "Record both with record=digest and the same save_steps, as nest-ssl bisect does."
        raise UserError("no step of which both have hashes", f"{reference.path} and {candidate.path}", fix)
    compared: list[int] = []
    tensors = 0
    for step in shared:
        both = [digests(side, step) for side in sides]
        if both[0].hash != both[1].hash:  # also where the bits are the same
            where = " and ".join(f"{side.path}: {own.hash}" for side, own in zip(sides, both, strict=True))
            fix = f"Record the side again that has {SHA256}, which this release no longer makes."
            raise UserError(f"hashes of two kinds in step {step}, which cannot be compared", where, fix)
        one, other = (dict(own.entries()) for own in both)
        places = [*one, *(place for place in other if place not in one)]
        compared.append(step)
        tensors += len(places)
        differing = [
            place for place in places if not (place in one and place in other and one[place].same(other[place]))
        ]
        if differing:
            place = differing[0]
            there = one.get(place), other.get(place)
            return DigestComparison(
                compared, tensors, DigestDifference(step, place, *there, len(places), len(differing))
            )
    return DigestComparison(compared, tensors, None)
