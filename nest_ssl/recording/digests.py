"""What a recording at level `digest` has of a step: of every tensor, in the order in which they came about, a hash."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from nest_ssl.kernels.available import HASHES, loops
from nest_ssl.recording import layout as files
from nest_ssl.recording import row_sums
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.reader import Recording
from nest_ssl.recording.tensors import describe_tensor, row_major, storable

# Elements that are hashed and then looked at while they are still in the processor's cache; from 1 << 15 on torch would
# start threads for them, in each thread that hashes.
AT_ONCE = 1 << 14
IN_LOOPS = 1 << 16  # the same where torch does nothing with them
HEX = 32  # digits of a hash that are kept: 128 bits
Hash = Literal["sha256", "row_sums"]
SHA256: Hash = "sha256"  # of the bytes in their order, as it was before
ROW_SUMS: Hash = "row_sums"  # of the sums of their rows


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A tensor in a few numbers.

    Args:
        dtype, shape: as torch has them.
        digest: of its bytes in row-major order (see `row_sums`); two are the same if it, `dtype` and `shape` are.
        least, most, norm: of its elements that are not NaN; the Euclidean norm is summed in float64.
        nans: how many are.
    """

    dtype: str
    shape: tuple[int, ...]
    digest: str
    least: float = 0.0
    most: float = 0.0
    norm: float = 0.0
    nans: int = 0

    def same(self, other: Fingerprint) -> bool:
        """Whether the tensors have the same bits, shape and dtype."""
        return (self.digest, self.shape, self.dtype) == (other.digest, other.shape, other.dtype)


def fingerprint(tensor: torch.Tensor) -> Fingerprint:
    """Of a tensor on any device; its elements are read once."""
    dense = storable(tensor.detach()).cpu()
    flat: Any = row_major(dense)
    in_loops = loops(HASHES) is not None and flat.dtype in (torch.float32, torch.float64)
    size = IN_LOOPS if in_loops else AT_ONCE
    parts = flat.split(size) if len(flat) > size else [flat][: len(flat)]
    return of_rows(describe_tensor(dense), [(row_sums.sums(part), row_sums.facts(part).tolist()) for part in parts])


def of_rows(
    described: Mapping[str, Any], found: Iterable[tuple[NDArray[np.int32], Sequence[float]]], filled: int = 0
) -> Fingerprint:
    """Of a tensor's shape and dtype, and of the sums and facts of pieces of it, in their order.

    Args:
        filled: elements behind its end that are no numbers.
    """
    made, least, most, squares, nans = hashlib.sha256(), math.inf, -math.inf, 0.0, -filled
    for sums, (low, high, more, none) in found:
        made.update(sums.data)
        least, most, squares, nans = min(least, low), max(most, high), squares + more, nans + int(none)
    bounds = (least, most) if least <= most else (0.0, 0.0)
    shape = tuple(described["shape"])
    return Fingerprint(described["dtype"], shape, made.hexdigest()[:HEX], *bounds, math.sqrt(squares), nans)


Row = tuple[str, str | None, int | None, str, str, str, list[int], Annotated[str, Field(max_length=HEX)], float, float,
            float, int]  # fmt: skip


class StepDigests(BaseModel):
    """`digests.json`: rows of an address (kind, module, call, slot, path) and the fingerprint of what is there, and
    which hash that has."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    hash: Hash = SHA256
    rows: list[Row]

    @classmethod
    def of(cls, entries: list[tuple[Address, Fingerprint]]) -> StepDigests:
        return cls.model_construct(hash=ROW_SUMS, rows=[
            (a.kind.value, a.module, a.call, a.slot, a.path, f.dtype, list(f.shape), f.digest, f.least, f.most, f.norm,
             f.nans) for a, f in entries
        ])  # fmt: skip

    def entries(self) -> Iterator[tuple[Address, Fingerprint]]:
        """In the order in which they came about.

        Raises:
            ValueError: a kind that there is not.
        """
        for kind, module, call, slot, path, dtype, shape, digest, least, most, norm, nans in self.rows:
            made = Fingerprint(dtype, tuple(shape), digest, least, most, norm, nans)
            yield Address(Kind(kind), module, call, slot, path), made


def digest_steps(recording: Recording) -> list[int]:
    """The steps that it has digests of."""
    pattern = re.compile(rf"(?:rank_0/)?step_(\d+)/{re.escape(files.DIGESTS)}")
    return sorted(int(found[1]) for name in recording.index.files if (found := pattern.fullmatch(name)))


def digests(recording: Recording, step: int, rank: int = 0) -> StepDigests:
    """Of one step; no rows where it has none.

    Raises:
        UserError: the file is damaged.
    """
    found = recording.read_json(f"{recording.step(step, rank).folder}/{files.DIGESTS}", StepDigests)
    return found or StepDigests.of([])
