"""Equality of raw bytes, and walking two tensors in step, in pieces that fit the cache.

Tensors come mapped from disk and may have any strides, so nothing here copies a whole tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nest_ssl.base.memory import lies_plain, same_bytes

CHUNK = 1 << 14  # elements: 128 KiB as float64, so that a handful of temporaries stays in the cache
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(reference: Tensor, candidate: Tensor) -> bool:
    """Whether two tensors are of one shape and hold the same bytes.

    A NaN equals a NaN of the same payload; 0.0 and -0.0 differ.
    """
    if reference.shape != candidate.shape:
        return False
    if lies_plain(reference) and lies_plain(candidate):
        return same_bytes(reference, candidate)
    return torch.equal(as_integers(reference), as_integers(candidate))


def as_integers(tensor: Tensor) -> Tensor:
    """The same memory seen as integers of the same size; complex numbers get a last axis of (real, imaginary)."""
    real = as_real(tensor)
    return real.view(_INTEGER_OF_SIZE[real.element_size()])


def as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def chunks(reference: Tensor, candidate: Tensor, size: int = CHUNK) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors as flat pieces of at most `size` elements, in row-major order, whatever their strides."""
    if reference.is_contiguous() and candidate.is_contiguous():
        yield from zip(*(torch.split(side.reshape(-1), size) for side in (reference, candidate)), strict=True)
        return
    row = reference[0].numel() if reference.numel() else 0
    if row > size:
        for reference_row, candidate_row in zip(reference, candidate, strict=True):
            yield from chunks(reference_row, candidate_row, size)
        return
    rows = max(1, size // max(1, row))
    for slab, other in zip(torch.split(reference, rows), torch.split(candidate, rows), strict=True):
        yield slab.reshape(-1), other.reshape(-1)
