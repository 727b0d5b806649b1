"""Files and folders that are written whole or not at all, and locks on the places that they are written to.

Whatever is being written lies beside its place as ``.NAME.partial-PID@HOST``: when that process is gone, so may it go.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nest_ssl.base.errors import UserError
from nest_ssl.base.progress import advance

CHUNK = 1 << 20  # bytes hashed at a time: they stay in the cache
DAY = 86_400  # seconds after which what another machine left is taken for abandoned
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2


def write_atomically(path: Path, content: bytes | str) -> None:
    """Put `content` at `path`, text as UTF-8 with bare newlines; an earlier file is lost only to a complete new one.

    Raises:
        OSError: see `write_errors`.
    """
    with replacing(path) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path`, through a power cut too, if nothing is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder `new`, made at `partial_path(target)`, in the place of `target`, and delete what was there.

    Where the system can exchange two names at once (Linux), `target` is there at every moment. Elsewhere the old one is
    moved aside first; `remove_leftovers` puts it back if we are killed in between.
    """
    aside = target.with_name(new.name.replace(".partial-", ".replaced-"))
    if not target.exists():
        os.rename(new, target)
    elif not _exchange(new, target):
        os.rename(target, aside)
        try:
            os.rename(new, target)
        except OSError:
            os.rename(aside, target)
            raise
        os.rename(aside, new)  # the name under which it may be found half deleted
    _sync_folder(target.parent)
    shutil.rmtree(new, ignore_errors=True)


def remove_leftovers(target: Path) -> None:
    """Mend what killed processes left beside `target`: put the old one back if there is none, delete what is half made.

    Call it under `lock`. What a living process of this machine is writing stays, and what another machine wrote, for a
    day.
    """
    for left in target.parent.glob(f".{target.name}.replaced-*@*"):
        os.rename(left, target if not target.exists() else left.with_name(left.name.replace(".replaced-", ".partial-")))
    for left in [p for form in ("partial", "replaced") for p in target.parent.glob(f".{target.name}.{form}-*")]:
        with suppress(OSError):
            alive = _is_alive(left.name)
            if alive is None:
                alive = time.time() - left.stat().st_mtime < DAY
            if not alive or left == partial_path(target):  # under the lock no other writer of this process is at it
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


@contextmanager
def lock(path: Path, what: str, where: Path | None = None) -> Iterator[None]:
    """Hold `path` as a lock file; it ends with the process at the latest.

    Args:
        what: what is done under it, e.g. ``"training"``.
        where: what it locks, for the message; by default its folder.

    Raises:
        UserError: another process, or this one, holds it; names that process.
        OSError: no file can be made there.
    """
    import filelock  # here alone: writing the practice data needs no package

    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # of a place that takes no file, filelock says that another has it
    held = filelock.FileLock(path)
    holder = ""
    with suppress(OSError):
        holder = path.read_text(encoding="utf-8")
    try:
        # Loader workers keep the lock of a killed process for the seconds until they notice.
        held.acquire(timeout=10 if _is_alive(holder) is False else 0)
    except filelock.Timeout as error:
        own = f"pid {_process()}," in holder
        who, fix = "another process writes here", "Wait until it has ended, or choose another folder."
        if own:
            who, fix = "this process writes here already", "End that first, or choose another folder."
        raise UserError(f"{who} ({holder or what})", str(where or path.parent), fix) from error
    try:
        path.write_text(f"{what}, pid {_process()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever waits for it sees that, and makes it again
        held.release()


def partial_path(target: Path) -> Path:
    """Where this process writes what will become `target`."""
    return target.with_name(f".{target.name}.partial-{_process()}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def is_regular(path: Path | str) -> bool:
    """Whether it is, or links to, a file with content: no folder, pipe or device, which may never end."""
    return Path(path).is_file()


def _sync_folder(folder: Path) -> None:
    """Make a renaming last through a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two names were exchanged in one step."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    return renameat2 is not None and not renameat2(
        _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
    )


def _process() -> str:
    return f"{os.getpid()}@{socket.gethostname()}"


def _is_alive(text: str) -> bool | None:
    """Whether there is the process that a text or name mentions as `_process` does; None where that cannot be known."""
    found = re.search(r"(\d+)@([^\s,]+)", text)
    if found is None or found[2] != socket.gethostname() or os.name != "posix":
        return None
    try:
        os.kill(int(found[1]), 0)  # asks only
    except PermissionError:
        return True  # another user's
    except (ProcessLookupError, OverflowError):
        return False
    return True
