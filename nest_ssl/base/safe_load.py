"""Reading what strangers wrote: weights and settings come in, code never does, and nothing unpacks to more than it is.

Tensors go through `torch.load(weights_only=True)`, or, where `tensor_file` takes all that is there, through that, which
is faster. torch itself verifies no checksum, so every record's CRC is compared first.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.nested import DEEPEST
from nest_ssl.base.tensor_file import read_mapped

# fmt: off
# What a damaged or hostile file makes the readers raise.
READER_ERRORS = (pickle.UnpicklingError, struct.error, zipfile.BadZipFile, ArithmeticError, AssertionError,
                 AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
# fmt: on
ANOTHER_FILE = "Choose another file, or have it written again."


@contextmanager
def opened(path: Path | str) -> Iterator[BinaryIO]:
    """A regular file, open for reading.

    Raises:
        UserError: it is not there, is no regular file or cannot be read.
    """
    if not Path(path).is_file():
        raise UserError("no such file", str(path), "Check the path.")
    try:
        with open(path, "rb") as stream:
            yield stream
    except OSError as error:
        if error.errno is None:  # a reader's own, about the content
            raise
        raise from_os_error(error, str(path)) from error


def load_tensors(source: Path | BinaryIO, where: str = "", mapped: bool = False, allowed: Sequence[Any] = ()) -> Any:
    """What `torch.save` wrote: tensors (on the CPU) and builtins in their nesting.

    Args:
        source: the file; an open one is read from its beginning.
        where: what to call it in an error, if not by its path.
        mapped: leave the tensors of a path on the disk. Their checksums, which cost a reading of all, are not checked.
        allowed: further classes to read; they must hold nothing but data.

    Raises:
        UserError: the file is damaged, would unpack to more than it is, or holds anything else.
    """
    where = where or str(source)
    with opened(source) if isinstance(source, Path) else nullcontext(source) as stream:
        try:
            entries = check_zip(stream, where, checksums=not mapped)
            if mapped and isinstance(source, Path) and not allowed:
                with suppress(*READER_ERRORS):
                    return read_mapped(source, entries)
            with torch.serialization.safe_globals(list(allowed)):
                file = source if mapped else stream
                return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
        except READER_ERRORS as error:
            foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
            if foreign:
                fix = "Only tensors, builtins and settings are read, so that no code of the file runs."
                raise UserError(f"it holds {foreign[1]}, which is no weight", where, fix) from error
            what = "not a file of weights, or a damaged one"
            raise UserError(what, f"{where} ({first_line(error)})", ANOTHER_FILE) from error


def check_zip(stream: BinaryIO, where: str, checksums: bool = True) -> list[zipfile.ZipInfo]:
    """The records of a file, unless no `torch.save` writes it or it was changed; the stream is at its beginning then.

    torch stores and never compresses, so what unpacks to more than the file holds was made to fill the memory.

    Raises:
        UserError: it unpacks to more than it is.
        zipfile.BadZipFile: a record does not match its checksum (torch compares none), or it is no zip.
    """
    size = stream.seek(0, 2)
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
            raise UserError("it unpacks to more than it is", where, ANOTHER_FILE)
        if checksums and (broken := archive.testzip()):
            raise zipfile.BadZipFile(f"{broken} does not match its checksum")
    stream.seek(0)
    return entries


class _Loader(yaml.CSafeLoader):
    """Dates stay text, as in OmegaConf: nothing but JSON's types comes out."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: bytes | str, where: str) -> Any:
    """YAML in builtins: without aliases and tags, which could make a small file endless, nor deep nesting.

    Raises:
        UserError: it is not that.
    """
    depth, reason = 0, "it is nested too deep"
    try:
        for event in yaml.parse(text, _Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                reason = f"it has an alias or a tag in line {getattr(event.start_mark, 'line', 0) + 1}"
                break
            if depth > DEEPEST:
                break
        else:
            return yaml.load(text, _Loader)
    except (yaml.YAMLError, *READER_ERRORS) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError("not YAML that can be read", f"{where}: {reason}", ANOTHER_FILE)


def lines_of(text: bytes | str) -> dict[str, int]:
    """Of YAML that `load_yaml` has read, in which line, from 1, each key of its mapping stands."""
    found = yaml.compose(text, _Loader)
    entries = found.value if isinstance(found, yaml.MappingNode) else []
    return {key.value: key.start_mark.line + 1 for key, _ in entries}


def first_line(error: BaseException) -> str:
    """What an error says, at most a line of it."""
    return (next(iter(str(error).splitlines()), "") or type(error).__name__)[:200]
