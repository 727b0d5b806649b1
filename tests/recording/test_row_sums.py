"""The hash of level `digest`: by its definition, by compiled loops, by torch's operators and row by row on a stage."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nest_ssl.kernels.available import HASHES, loops
from nest_ssl.record.observers.digests import STAGED, Hashing
from nest_ssl.recording import row_sums
from nest_ssl.recording.digests import HEX, Fingerprint, fingerprint
from nest_ssl.recording.row_sums import BOUND, FILL, ROW, SUMS, WORDS, keys

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
            torch.uint64)  # fmt: skip
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
DTYPES = (*INTEGERS, *STAGED, *COMPLEX, torch.float8_e4m3fn, torch.float8_e5m2)
NUMBERS = [0.0, -0.0, 1.0, -1.5, torch.nan, torch.inf, -torch.inf, 3e-39, 1e30]
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def defined(tensor: Tensor) -> str:
    """In Python's own whole numbers."""
    content = tensor.contiguous().reshape(-1).clone().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    content += bytes([FILL]) * (-len(content) % ROW)
    words, every = np.frombuffer(content, "<i2").tolist(), keys().tolist()
    sums = [sum(w * k for w, k in zip(words[first : first + WORDS], every[s:], strict=False)) % 2**32
            for first in range(0, len(words), WORDS) for s in range(SUMS)]  # fmt: skip
    return hashlib.sha256(b"".join(one.to_bytes(4, "little") for one in sums)).hexdigest()[:HEX]


def without_loops(tensor: Tensor) -> Fingerprint:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("row_sums", "digests"):
            patch.setattr(f"nest_ssl.recording.{module}.loops", lambda _: None)
        return fingerprint(tensor)


def on_stages(tensors: list[Tensor], size: int) -> list[Fingerprint]:
    """As of a device: all are copied, and then nothing of them is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nest_ssl.record.observers.digests.remote", lambda _: True)
        hashing = Hashing(lambda job: pytest.fail("no thread hashes a float"), stage=size)
        own = [tensor.clone() for tensor in tensors]
        found = [hashing.of(each) for each in own]
        for each in own:
            each.zero_()
        for stage in hashing.stages.values():
            stage.flush()
    assert all(isinstance(each, Future) for each in found)
    return [each.result() for each in found if isinstance(each, Future)]


def alike(one: Fingerprint, other: Fingerprint) -> bool:
    """The order in which the norm's squares are summed is each way's own."""
    same = one.same(other) and (one.least, one.most, one.nans) == (other.least, other.most, other.nans)
    return same and one.norm == pytest.approx(other.norm, rel=1e-12)


@st.composite
def recorded(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Tensor:
    """Of any bits, so that there are NaN of all kinds; or of known numbers."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(st.lists(st.integers(0, 40), max_size=3))
    many = draw(st.sampled_from([0, 0, 0, 1, ROW // dtype.itemsize - 1, 3 * ROW // dtype.itemsize]))
    shape = [many, *shape[:1]] if many else shape
    count = int(np.prod(shape, dtype=np.int64))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    if dtype in INTEGERS or draw(st.booleans()):
        bits = generator.integers(0, 256, max(1, count) * dtype.itemsize, np.uint8)
        made = torch.from_numpy(bits % 2 if dtype is torch.bool else bits).view(dtype)[:count]
    else:
        made = torch.from_numpy(generator.choice(NUMBERS, count)).to(dtype)
    made = made.reshape(shape)
    return made.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else made


@settings(max_examples=200, deadline=None)
@given(recorded())
def test_loops_and_operators_find_the_same(tensor: Tensor) -> None:
    assert loops(HASHES) is not None, "compared with itself"
    found = fingerprint(tensor)
    assert found.digest == defined(tensor) and alike(found, without_loops(tensor))


@settings(max_examples=100, deadline=None)
@given(st.lists(recorded((*STAGED, *COMPLEX)), min_size=1, max_size=6), st.sampled_from([1, 2, 5, 64]))
def test_a_stage_finds_what_the_cpu_finds(tensors: list[Tensor], rows: int) -> None:
    """Of tensors that fill a part of it, and of those that are larger than it."""
    found = on_stages(tensors, rows * ROW)
    assert all(alike(one, fingerprint(tensor)) for one, tensor in zip(found, tensors, strict=True))


def test_every_bit_counts_and_every_place() -> None:
    content = torch.from_numpy(np.random.default_rng(0).integers(0, 256, ROW + 26, np.uint8))
    seen = {fingerprint(content).digest}
    places = [*range(0, 40), *range(ROW - 9, len(content))]
    for place in places:
        for bit in range(8):
            content[place] ^= 1 << bit
            seen.add(fingerprint(content).digest)
            content[place] ^= 1 << bit
    assert len(seen) == 1 + 8 * len(places)
    floats = torch.arange(1.0, 41.0)
    for one in range(len(floats)):
        for other in range(one):
            swapped = floats.clone()
            swapped[[one, other]] = floats[[other, one]]
            seen.add(fingerprint(swapped).digest)
    assert len(seen) == 1 + 8 * len(places) + 40 * 39 // 2
    zeros = [fingerprint(torch.zeros(count)) for count in (0, 1, 2, 2047, 2048, 2049)]
    assert len({one.digest for one in zeros}) == len(zeros) and not fingerprint(-torch.zeros(1)).same(zeros[1])


def test_the_same_bytes_of_another_dtype_or_shape_are_another_tensor() -> None:
    one = torch.arange(6.0)
    others = [one.view(torch.int32), one.view(2, 3), one.view(torch.complex64), one.view(torch.bfloat16)]
    assert all(fingerprint(other).digest == fingerprint(one).digest for other in others)
    assert not any(fingerprint(other).same(fingerprint(one)) for other in others)


def test_the_keys_are_those_of_every_release_and_no_two_places_have_the_same() -> None:
    assert hashlib.sha256(keys().astype("<i2").tobytes()).hexdigest()[:16] == "906e8de635a2f0f4"
    at = [tuple(keys()[place : place + SUMS].tolist()) for place in range(WORDS)]
    assert len({*at}) == WORDS and all(any(own) for own in at)
    assert keys().min() >= -BOUND and keys().max() < BOUND and len(keys()) == WORDS + SUMS - 1
    assert fingerprint(torch.arange(3000.0)).digest == "128ba897e8e68d5f56769b5b7987b5f0"


@pytest.mark.parametrize("word", [-(2**15), 2**15 - 1])
@pytest.mark.parametrize("against", [-BOUND, BOUND - 1, None])
def test_no_sum_is_rounded(word: int, against: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest words times the largest keys of one sign, also where autocast computes."""
    made = np.full_like(keys(), against) if against is not None else keys()
    monkeypatch.setattr(row_sums, "keys", lambda: made)
    row_sums._key_matrix.cache_clear()
    rows: Any = torch.full((2, WORDS), word, dtype=torch.int16)
    rows[1, ::2] = 1
    with torch.autocast("cpu", torch.bfloat16):
        by_operators = row_sums.sums_by_operators(rows)
    row_sums._key_matrix.cache_clear()
    wanted = [[sum(w * int(k) for w, k in zip(row, made[s:], strict=False)) % 2**32 for s in range(SUMS)]
              for row in rows.tolist()]  # fmt: skip
    assert (by_operators.long() % 2**32).tolist() == wanted
    assert np.array_equal(row_sums.sums(rows.view(-1)), by_operators.numpy())


def test_what_lies_at_an_odd_place_is_hashed() -> None:
    content = torch.arange(2 * ROW + 1, dtype=torch.int64).to(torch.uint8)
    assert fingerprint(content[1:]).digest == fingerprint(content[1:].clone()).digest == defined(content[1:])
    odd = torch.frombuffer(bytearray(4 * ROW + 1), dtype=torch.float32, offset=1, count=ROW)
    assert fingerprint(odd) == fingerprint(torch.zeros(ROW))
