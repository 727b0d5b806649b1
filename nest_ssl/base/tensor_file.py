"""What `torch.save` writes of tensors and builtins, read in a fraction of torch's time; the tensors stay on the disk.

`torch.load(weights_only=True)` reads pickle's opcodes in Python, one by one through a long chain of questions, and asks
of every tensor thrice whether it is a fake one: that is most of the time in which recordings are compared. Here is what
such a file needs and nothing else. Whatever else stands in a file is an error, upon which torch has to read it, or has
to say what is wrong with it. Nothing is called but what makes a tensor of bytes that the file has.

Source of the opcodes: Python's `pickletools`; of the records: `torch.serialization`.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

# By opcode: what stands behind it, and what it puts on the stack.
_OPERANDS = {
    pickle.PROTO[0]: "<B", pickle.BININT[0]: "<i", pickle.BININT1[0]: "<B", pickle.BININT2[0]: "<H",
    pickle.BINFLOAT[0]: ">d", pickle.BINUNICODE[0]: "<I", pickle.LONG1[0]: "<B", pickle.BINPUT[0]: "<B",
    pickle.LONG_BINPUT[0]: "<I", pickle.BINGET[0]: "<B", pickle.LONG_BINGET[0]: "<I",
}  # fmt: skip
_FORMS = {code: (struct.Struct(form).unpack_from, struct.calcsize(form)) for code, form in _OPERANDS.items()}
_PUTS, _GETS = {pickle.BINPUT[0], pickle.LONG_BINPUT[0]}, {pickle.BINGET[0], pickle.LONG_BINGET[0]}
_NUMBERS = {code[0] for code in (pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINFLOAT)}
_CONSTANTS = {pickle.NONE[0]: None, pickle.NEWTRUE[0]: True, pickle.NEWFALSE[0]: False}
_EMPTY = {pickle.EMPTY_DICT[0]: dict, pickle.EMPTY_LIST[0]: list, pickle.EMPTY_TUPLE[0]: tuple}
_SIZES = {pickle.TUPLE1[0]: 1, pickle.TUPLE2[0]: 2, pickle.TUPLE3[0]: 3}
# Numbers of opcodes by themselves: looked up in `pickle` for each opcode they would be half of the time.
_STOP, _TEXT, _LONG, _MARK, _TUPLE = (
    c[0] for c in (pickle.STOP, pickle.BINUNICODE, pickle.LONG1, pickle.MARK, pickle.TUPLE)
)
_STORED, _GLOBAL, _REDUCE, _PROTO = (c[0] for c in (pickle.BINPERSID, pickle.GLOBAL, pickle.REDUCE, pickle.PROTO))
_NAMES: dict[bytes, Any] = {b"torch._utils\n_rebuild_tensor_v2": "tensor", b"collections\nOrderedDict": OrderedDict}
_NAMES |= {f"torch\n{name}Storage".encode(): dtype for name, dtype in {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool}.items()}  # fmt: skip


class _Storage(NamedTuple):
    dtype: torch.dtype
    content: torch.UntypedStorage


def read_mapped(path: Path, entries: Sequence[zipfile.ZipInfo]) -> Any:
    """Tensors and builtins of a file whose records are `entries`; the tensors are on the disk.

    Raises:
        Exception: it holds anything else, or is damaged; any kind, for damage shows anywhere.
    """
    records = {entry.filename: entry for entry in entries}
    (pickled,) = [name for name in records if name.endswith("/data.pkl")]
    folder = pickled.removesuffix("data.pkl")
    if len(records) != len(entries) or not all(name.startswith(folder) for name in records):
        raise ValueError("records of more than one archive")
    whole = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    storages: dict[str, _Storage] = {}
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:

        def place(name: str) -> slice:
            """Where in the file a record is: behind a header, whose last fields say how long two names in it are."""
            at = records[name].header_offset
            begin = at + 30 + sum(struct.unpack_from("<HH", raw, at + 26))
            return slice(begin, begin + records[name].file_size)

        def storage(given: Any) -> _Storage:
            kind, dtype, key, location, number = given
            if (kind, location) != ("storage", "cpu") or not isinstance(dtype, torch.dtype) or type(number) is not int:
                raise ValueError("no storage of the CPU")
            if key not in storages:
                if number * dtype.itemsize != records[f"{folder}data/{key}"].file_size:
                    raise ValueError("a storage of another size than its record")
                storages[key] = _Storage(dtype, whole[place(f"{folder}data/{key}")])
            if storages[key].dtype != dtype:
                raise ValueError("a storage of two types")
            return storages[key]

        if raw[place(f"{folder}byteorder")] != sys.byteorder.encode():
            raise ValueError("another byte order")
        return _interpret(raw[place(pickled)], storage)


def _interpret(data: bytes, storage: Callable[[Any], _Storage]) -> Any:
    """The value that a pickle of protocol 2 describes; `storage` is called with its persistent ids."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    at, value = 0, 0
    while (code := data[at]) != _STOP:
        at += 1
        if code in _FORMS:
            unpack_from, size = _FORMS[code]
            (value,) = unpack_from(data, at)
            at += size
            if code in _PUTS:
                memo[value] = stack[-1]
            elif code in _GETS:
                stack.append(memo[value])
            elif code in _NUMBERS:
                stack.append(value)
            elif code != _PROTO:
                content, at = data[at : at + value], at + value  # past the end: the next opcode is an error
                stack.append(
                    content.decode("utf-8", "surrogatepass")
                    if code == _TEXT
                    else int.from_bytes(content, "little", signed=True)
                )
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _SIZES:
            size = _SIZES[code]
            stack[-size:] = [tuple(stack[-size:])]
        elif code == _MARK:
            marks.append(len(stack))
        elif code == _STORED:
            stack.append(storage(stack.pop()))
        elif code == _GLOBAL:
            end = data.index(b"\n", data.index(b"\n", at) + 1)
            stack.append(_NAMES[data[at:end]])
            at = end + 1
        elif code == _REDUCE:
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments))
        else:
            _gather(code, stack, marks)
    (value,) = stack
    return value


def _gather(code: int, stack: list[Any], marks: list[int]) -> None:
    """What lies on the stack goes into the list, dict or tuple that it belongs to."""
    single = {pickle.APPEND[0]: 1, pickle.SETITEM[0]: 2}
    begin = len(stack) - single[code] if code in single else marks.pop()
    items = stack[begin:]
    del stack[begin:]
    if code == pickle.TUPLE[0]:
        stack.append(tuple(items))
    elif code in (pickle.APPEND[0], pickle.APPENDS[0]) and type(stack[-1]) is list:
        stack[-1] += items
    elif code in (pickle.SETITEM[0], pickle.SETITEMS[0]) and type(stack[-1]) is dict:
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    else:
        raise ValueError(f"opcode {code}")


def _made(kind: Any, arguments: Any) -> Any:
    """A tensor over a storage; or the empty dict of its hooks, which is handed on to make it and nothing else."""
    if kind is OrderedDict and arguments == ():
        return OrderedDict()
    storage, offset, size, stride, gradient, hooks = arguments
    if kind != "tensor" or type(storage) is not _Storage or gradient is not False or hooks != {}:
        raise ValueError("it is made of something else")
    return torch.empty(0, dtype=storage.dtype, device="cpu").set_(storage.content, offset, size, stride)
