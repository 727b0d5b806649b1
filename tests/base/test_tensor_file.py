"""What is read without torch is what torch reads, bit by bit; and whatever is odd or damaged is left to torch."""

from __future__ import annotations

import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.base.nested import leaves
from nest_ssl.base.safe_load import READER_ERRORS, load_tensors
from nest_ssl.base.tensor_file import read_mapped

BASE = torch.arange(24.0).reshape(4, 6)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool)  # fmt: skip
VALUE = {
    "dtypes": [(BASE * 0.3).to(dtype) for dtype in DTYPES],
    "views": [BASE, BASE.T, BASE[1:, ::2], BASE[2, 3], BASE[:0], torch.tensor(1.5), torch.ones(1).expand(3)],
    "builtins": [None, True, False, 0, 255, 256, -1, 2**31, -(2**40), 1.5, "", "日本", "x" * 300, (), [], {}],
    "tuples": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [(), [[]]], {"a": {"b": [None]}}),
    "many": {f"{number}": [number] for number in range(400)},
}  # fmt: skip


def write(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def read(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return read_mapped(path, archive.infolist())


def content(value: Any) -> list[tuple[str, Any]]:
    """Every leaf; a tensor as all that there is to it."""

    def shown(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return type(leaf), leaf
        bits = leaf.contiguous().reshape(-1).view(torch.uint8).tolist() if leaf.numel() else []
        return leaf.dtype, leaf.shape, leaf.stride(), leaf.storage_offset(), leaf.requires_grad, bits

    return [(path, shown(leaf)) for path, leaf in leaves(value)]


def test_it_is_what_torch_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "value.pt", VALUE)
    found, wanted = read(path), torch.load(path, weights_only=True, mmap=True)
    assert content(found) == content(wanted) and len(content(found)) > 400
    first, turned, *_ = found["views"]
    assert first.untyped_storage().data_ptr() == turned.untyped_storage().data_ptr(), "they share their storage still"
    first[0, 0] = 7  # in memory alone
    assert turned[0, 0] == 7 and read(path)["views"][0][0, 0] == 0


def test_one_tensor_in_two_places_stays_one(tmp_path: Path) -> None:
    found = read(write(tmp_path / "value.pt", {"a": BASE, "b": [BASE]}))
    assert found["a"] is found["b"][0]


@pytest.mark.parametrize(
    "value",
    [torch.nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True), torch.ones(2).to_sparse(), torch.Size([1]),
     torch.float32, OrderedDict(a=1), torch.ones(1, dtype=torch.complex64).conj(), torch.ones(2, device="meta")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_anything_else_is_left_to_torch(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "value.pt", [value])
    with pytest.raises((*READER_ERRORS, OSError)):
        read(path)
    assert type(load_tensors(path, mapped=True)[0]) is type(torch.load(path, weights_only=True, mmap=True)[0])


@pytest.mark.filterwarnings("ignore")
def test_damage_is_an_error_or_what_torch_makes_of_it(tmp_path: Path) -> None:
    """Bits flipped anywhere: nothing hangs, and no value is another than what torch reads, or was written."""
    value = {"w": BASE.clone(), "m": [BASE[1], (1, "a", None)], "n": {"k": torch.arange(3), "x" * 20: 2**40}}
    path = write(tmp_path / "value.pt", value)
    whole, chosen, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(600):
        damaged = bytearray(whole)
        damaged[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        try:
            found = content(read(path))
        except (*READER_ERRORS, OSError, NotImplementedError):
            refused += 1
            continue
        try:
            wanted = content(torch.load(path, weights_only=True, mmap=True))
        except READER_ERRORS:  # damage to what is no value
            wanted = content(value)
        assert found == wanted
    assert 50 < refused < 500
