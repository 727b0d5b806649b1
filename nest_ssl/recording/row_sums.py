"""A tensor row by row: sums that stand for its bits, and facts of its numbers, the same wherever it lies.

SHA-256 goes through bytes one after the other, which no device does well. So of each row of 4,096 words of 16 bits (its
last filled up with bits that are set: no number in any format of floats) there are eight sums, modulo 2 ** 32, of its
words times fixed random keys, sum s with the keys from s on; and a tensor's hash is a SHA-256 of its rows' sums, 1/256
of its bytes. All of it is in integers, so that the order of sums does not matter.

Two rows that differ have the same sums with a probability of 2 ** -127.9 over the keys: with the last word that
differs, sum s multiplies a key that no sum before it has. Of the 65,280 values that it may have one at most makes up
for the other words, as a difference of words times one of keys is no multiple of 2 ** 32. Source: Carter and Wegman,
"Universal classes of hash functions" (1979); the shifted keys are a Toeplitz matrix, as in Krawczyk, "LFSR-based
hashing and authentication" (1994), and in UMAC (Black et al., 1999). It finds accidents: as the keys are
known, two tensors of one hash can be made.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nest_ssl.kernels.available import HASHES, loops

WORDS, SUMS = 4096, 8  # of a row
ROW = 2 * WORDS  # bytes
FILL = 255  # each byte behind the end
# Keys are from -BOUND to BOUND - 1: as 256 a + b with signed bytes a and b, which units of devices multiply.
BOUND = 127 * 256 + 128


@cache
def keys() -> NDArray[np.int16]:
    """Those of sum 0, and behind them what the others have: of SHAKE-256's stream the words that are in bounds."""
    drawn = np.frombuffer(hashlib.shake_256(b"nest_ssl: sums of rows").digest(2 * ROW), "<i2").astype(np.int16)
    return drawn[(drawn >= -BOUND) & (drawn < BOUND)][: WORDS + SUMS - 1]


@cache
def _key_matrix(device: torch.device) -> Tensor:
    """(WORDS, SUMS)"""
    shifted = np.lib.stride_tricks.sliding_window_view(keys(), WORDS).T.astype(np.float64)
    return torch.from_numpy(np.ascontiguousarray(shifted)).to(device)


def sums_by_operators(rows: Tensor) -> Tensor:
    """(rows, SUMS) as int32 of (rows, WORDS) as int16, where they lie: products of 31 bits, of which 4,096 are summed,
    are exact in float64, which autocast leaves alone."""
    return (rows.double() @ _key_matrix(rows.device)).long().int()


def facts_by_operators(rows: Tensor) -> Tensor:
    """(rows, 4) as float64 of (rows, n) floats, where they lie: least, most and sum of squares of what is a number,
    and how many are none."""
    rows = rows.float() if rows.itemsize < 4 else rows
    none = rows.isnan()
    least, most = rows.masked_fill(none, torch.inf).amin(1), rows.masked_fill(none, -torch.inf).amax(1)
    norm = torch.linalg.vector_norm(rows.masked_fill(none, 0.0), dim=1, dtype=torch.float64)
    return torch.stack([least.double(), most.double(), norm.square(), none.sum(1).double()], dim=1)


def sums(part: Tensor) -> NDArray[np.int32]:
    """(rows, SUMS) of a dense CPU tensor of one dimension, of whole rows but for the last one."""
    content = part.view(torch.uint8).numpy()
    if len(content) % ROW or content.ctypes.data % 2:
        whole = np.full(-(-len(content) // ROW) * ROW, FILL, np.uint8)
        whole[: len(content)] = content
        content = whole
    words, compiled = content.view(np.int16), loops(HASHES)
    if compiled is None:
        return sums_by_operators(torch.from_numpy(words).view(-1, WORDS)).numpy()
    made = np.empty((len(words) // WORDS, SUMS), np.int32)
    compiled.sums_of_rows(made, words, keys())
    return made


def facts(part: Tensor) -> NDArray[np.float64]:
    """(4,) of a dense CPU tensor of one dimension that has elements, see `facts_by_operators`."""
    real = torch.view_as_real(part).view(-1) if part.is_complex() else part
    known = real.dtype in (torch.float32, torch.float64)
    numbers = real if known else real.float() if real.itemsize < 4 else real.double()
    compiled: Any = loops(HASHES)
    if compiled is None:
        return facts_by_operators(numbers.view(1, -1))[0].numpy()
    made = np.empty(4)
    array = numbers.numpy()
    loop = compiled.facts_of_float64 if numbers.itemsize == 8 else compiled.facts_of_float32
    loop(made, array if array.flags.aligned else array.copy())
    return made
