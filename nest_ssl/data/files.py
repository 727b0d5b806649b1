"""Files of a corpus: whether they are regular ones, whether they have changed, and which bytes they have."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from nest_ssl.base.files import sha256_of

MIB = 1 << 20


class FileState(NamedTuple):
    """What a file's content cannot change without; a cheap answer to whether it is still the same."""

    size: int
    modified_ns: int
    changed_ns: int  # moves too where a copy keeps the time of modification
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def state_of(path: str) -> FileState | None:
    """The state of a regular file; None for whatever cannot be read as one."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return FileState.of(status) if stat.S_ISREG(status.st_mode) else None


def file_sha256(path: str, sampled: bool = False) -> str | None:
    """SHA-256 of a regular file, or of its size and ends; None if it cannot be read."""
    state = state_of(path)
    if state is None:
        return None
    if state.size == 0:  # files of /proc say so, and may not end
        return hashlib.sha256().hexdigest()
    try:
        if not sampled:
            return sha256_of(Path(path))
        digest = hashlib.sha256(b"%d\n" % state.size)
        with open(path, "rb") as file:
            for start in (0, max(0, state.size - MIB)):
                file.seek(start)
                digest.update(file.read(MIB))
    except OSError:
        return None
    return digest.hexdigest()


def relative_name(path: str, manifest: str) -> str:
    """A file's name from the folder of the manifest that names it, with forward slashes."""
    if not os.path.isabs(path):
        return Path(path).as_posix()  # as written: it was found from the working folder, or nowhere
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(manifest)))
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of a Windows machine
        return Path(path).as_posix()


def where_to_look(fix: str) -> str:
    """What to do about a file that is not there; in a container it may be only out of sight."""
    in_container = bool(os.environ.get("NEST_SSL_IMAGE"))
    return f"{fix} A container sees only the folders that DATA= names." if in_container else fix
