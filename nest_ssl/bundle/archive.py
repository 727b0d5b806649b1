"""The container: a plain tar of regular files, the same bytes from the same files, read without trusting it.

Nothing is compressed, so nothing unpacks to more than it is. Headers are read one by one here: `tarfile` would follow
links and extended headers, and a bundle has neither.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import CHUNK, replacing
from nest_ssl.base.safe_load import opened

BLOCK = 512  # bytes: of a header, and what a file's content is filled up to
MOST_FILES = 20_000
LONGEST = 99  # letters of a name: more would need an extended header
NAME = re.compile(r"[a-z0-9_][\w.-]*(/\w[\w.-]*){0,6}", re.ASCII | re.IGNORECASE)
FIX = "Get it again from whoever made it."


def write_archive(target: Path, files: Mapping[str, Path | bytes]) -> None:
    """Write `files` by their names in the bundle, in their order; owners, times and modes are left out.

    Raises:
        UserError: a name that a bundle cannot hold, a file that cannot be read, or a target that cannot be written.
    """
    with write_errors(str(target)), replacing(target) as partial, partial.open("wb") as stream:
        for name, content in files.items():
            if len(name) > LONGEST or not NAME.fullmatch(name):
                raise UserError("a name that a bundle cannot hold", name, "Give the file or its folder a shorter name.")
            header = tarfile.TarInfo(name)
            header.size = len(content) if isinstance(content, bytes) else content.stat().st_size
            stream.write(header.tobuf(tarfile.GNU_FORMAT))
            written = 0
            for chunk in [content] if isinstance(content, bytes) else chunks(content):
                written += stream.write(chunk)
            if written != header.size:
                raise UserError("a file changed while it was read", str(content), "Wait until nothing writes there.")
            stream.write(b"\0" * (-written % BLOCK))
        stream.write(b"\0" * (2 * BLOCK))


def unpack(source: Path, folder: Path) -> dict[str, str]:
    """Write the files of a bundle below `folder`, which is empty; returns the SHA-256 of each by its name.

    Raises:
        UserError: it is no bundle, or holds what no bundle has: links, devices, names that lead elsewhere or come
            twice, a size beyond its end, anything behind it.
    """
    digests: dict[str, str] = {}
    taken: set[str] = set()  # without case: there are disks that make one file of two such names
    with opened(source) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        for header in _headers(stream, source, size):
            name = header.name
            if name.lower() in taken:
                raise UserError("a file that is there twice", f"{source}: {name}", FIX)
            taken.add(name.lower())
            path = folder / name
            with write_errors(f"{source}: {name}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                digests[name] = _copy(stream, path, header.size)
    return digests


def chunks(path: Path) -> Iterator[bytes]:
    with opened(path) as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _headers(stream: BinaryIO, source: Path, size: int) -> Iterator[tarfile.TarInfo]:
    """Each header, with the stream at its content; whoever takes it reads the content."""
    for number in range(MOST_FILES + 1):
        block = stream.read(BLOCK)
        if block == b"\0" * BLOCK and number:
            if stream.read(BLOCK + 1) != b"\0" * BLOCK:
                raise UserError("more than a bundle", f"{source}: something stands behind its end", FIX)
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise UserError(
                "not a bundle, or a damaged one", f"{source}: byte {stream.tell() - len(block):,}", FIX
            ) from error
        if header.type != tarfile.REGTYPE or header.sparse or not NAME.fullmatch(header.name):
            raise UserError("no regular file of a bundle", f"{source}: {header.name!r}", FIX)
        content = stream.tell()
        if not 0 <= header.size <= size - content:
            raise UserError("a file that ends behind the bundle", f"{source}: {header.name}", FIX)
        yield header
        stream.seek(content + header.size + -header.size % BLOCK)
    raise UserError(f"more than {MOST_FILES:,} files", str(source), FIX)


def _copy(stream: BinaryIO, path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("xb") as target:
        while size:
            chunk = stream.read(min(CHUNK, size))
            if not chunk:
                raise OSError("it ends early")
            size -= target.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()
