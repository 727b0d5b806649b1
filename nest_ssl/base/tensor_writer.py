"""Tensors and builtins, written as `torch.save` writes them, and hashed on the way.

What is written before all of a file is known stands before the pickle: readers find every record by its name.

`torch.save` takes most of its time for checksums of its own making, and for questions that it asks of every value. What
stands in the file is the same: the pickle byte by byte, a record for each storage, and each record's CRC-32. Only
records are left out that reading does without: in which torch says how it lays records out, and a hash of its own.

Source: PKWARE's APPNOTE for the archive, Python's `pickle` and `torch.serialization` for what is in it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

CHUNK = 1 << 20  # bytes that are hashed and written at a time: they stay in the cache
ALIGNED = 64  # bytes, as torch has it: what is mapped can be computed with
# Of the archive's first form: from here on a field says so, and the next has it.
MOST, MOST_RECORDS = 0xFFFFFFFF, 0xFFFF
_ELSEWHERE, _UTF8, _FIRST_DAY = 0xFFFFFFFF, 0x800, 0x21
_STORAGES = {dtype: getattr(torch, f"{name}Storage") for name, dtype in {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool}.items()}  # fmt: skip


class UnfitError(Exception):
    """There is a tensor among it that `torch.save` has to write, or has to refuse."""


def write_tensors(path: Path, value: Any) -> str:
    """Write nested tensors and builtins; returns the SHA-256 of the file.

    Raises:
        UnfitError: as of `takes`. The file was not begun.
        OSError: the system refuses.
    """
    return TensorFile(path).end(value)


def takes(tensor: torch.Tensor) -> bool:
    """Whether it is of a type that is written here: plain, dense, and on the CPU."""
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and tensor.device.type == "cpu"
    return plain and tensor.dtype in _STORAGES and not tensor.requires_grad and not tensor.is_neg()


class TensorFile:
    """A file of tensors, of which some may be written before it is known what they belong to.

    Between two calls it is closed. What is there already is lost with the first.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._archive = path, _Archive(path.stem)
        self._added = 0  # storages

    def add(self, storages: Sequence[torch.UntypedStorage]) -> list[int]:
        """Write these; returns the place in the file at which each begins.

        Raises:
            OSError: the system refuses.
        """
        with self._archive.into(self.path):
            places = [self._archive.add(f"data/{self._added + n}", _content(each)) for n, each in enumerate(storages)]
        self._added += len(storages)
        return places

    def end(self, value: Any, added: Iterable[torch.Tensor] = ()) -> str:
        """Write all else; returns the SHA-256 of the file.

        Args:
            added: of each storage that was added, in that order, the tensor that it is of; its memory may be another by
                now, with the same bytes.

        Raises:
            UnfitError: as `write_tensors`. No more was written.
            OSError: the system refuses.
        """
        pickled = io.BytesIO()
        pickler = _Pickler(pickled, added)
        pickler.dump(value)
        with self._archive.into(self.path):
            self._archive.add("data.pkl", pickled.getvalue())
            self._archive.add("byteorder", sys.byteorder.encode())
            for key, storage in pickler.storages()[self._added :]:
                self._archive.add(f"data/{key}", _content(storage))
            self._archive.add("version", b"3\n")
            return self._archive.end()


class _Stored:
    """A storage, by what stands for it in the pickle."""

    def __init__(self, *named: Any) -> None:
        self.named = named


class _Pickler(pickle.Pickler):
    """Pickles as torch does, and notes the storages."""

    def __init__(self, stream: io.BytesIO, added: Iterable[torch.Tensor]) -> None:
        super().__init__(stream, protocol=2)
        self._found: dict[int, tuple[str, torch.dtype, torch.UntypedStorage]] = {}
        for number, tensor in enumerate(added):
            storage = tensor.untyped_storage()
            self._found[storage._cdata] = str(number), tensor.dtype, storage

    def storages(self) -> list[tuple[str, torch.UntypedStorage]]:
        return [(key, storage) for key, _, storage in self._found.values()]

    def persistent_id(self, value: Any) -> Any:
        return value.named if type(value) is _Stored else None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        if not takes(value):
            raise UnfitError
        storage = value.untyped_storage()
        key, dtype, _ = self._found.setdefault(storage._cdata, (str(len(self._found)), value.dtype, storage))
        if dtype != value.dtype:
            raise UnfitError
        stored = _Stored("storage", _STORAGES[dtype], key, "cpu", storage.nbytes() // dtype.itemsize)
        layout = value.storage_offset(), tuple(value.size()), value.stride()
        return torch._utils._rebuild_tensor_v2, (stored, *layout, False, OrderedDict())


class _Archive:
    """A zip of records that are stored as they are, hashed as it is written."""

    _stream: BinaryIO

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._hash, self._at, self._pending = hashlib.sha256(), 0, bytearray()
        self._contents: list[bytes] = []

    @contextmanager
    def into(self, path: Path) -> Iterator[None]:
        """What is added meanwhile is in the file afterwards."""
        with path.open("ab" if self._at else "wb", buffering=0) as self._stream:
            yield
            self._flush()

    def add(self, name: str, content: bytes | memoryview) -> int:
        """Returns the place of the content in the file."""
        whole, size, crc, begin = f"{self._folder}/{name}".encode(), len(content), zlib.crc32(content), self._at
        wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= MOST else b""
        gap = -(begin + 30 + len(whole) + len(wide) + 4) % ALIGNED
        extra = wide + struct.pack("<HH", 0x4246, gap) + b"Z" * gap
        sizes = (_field(size),) * 2
        common = (45 if wide else 20, _UTF8, 0, 0, _FIRST_DAY, crc, *sizes, len(whole))
        self._put(struct.pack("<4sHHHHHIIIHH", b"PK\3\4", *common, len(extra)) + whole + extra)
        place = self._at
        self._put(content)
        large = [number for number in (size, size, begin) if number >= MOST]
        extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
        entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 45, *common, len(extra), 0, 0, 0, 0, _field(begin))
        self._contents.append(entry + whole + extra)
        return place

    def end(self) -> str:
        """Write the table of contents; returns the SHA-256 of all."""
        begin, count, contents = self._at, len(self._contents), b"".join(self._contents)
        self._put(contents)
        if count >= MOST_RECORDS or self._at >= MOST:
            there = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(contents), begin)
            self._put(there + struct.pack("<4sIQI", b"PK\6\7", 0, self._at, 1))
        numbers = (count if count < MOST_RECORDS else 0xFFFF,) * 2
        self._put(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, *numbers, _field(len(contents)), _field(begin), 0))
        self._flush()
        return self._hash.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._at += len(data)
        if len(data) < CHUNK // 16:
            self._pending += data
            data = b""
        if data or len(self._pending) >= CHUNK:
            self._flush()
        for start in range(0, len(data), CHUNK):
            self._write(data[start : start + CHUNK])

    def _flush(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self._write(pending)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        self._hash.update(data)
        left = memoryview(data)
        while left:  # an unbuffered stream may take a part of it
            left = left[self._stream.write(left) :]


def _content(storage: torch.UntypedStorage) -> bytes | memoryview:
    content = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    return content.numpy().data if content.numel() else b""


def _field(value: int) -> int:
    """What stands in the archive's first form for a size or a place in the file."""
    return value if value < MOST else _ELSEWHERE
