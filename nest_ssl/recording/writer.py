"""Writes one recording: beside its target, file by file, and into its place only when complete.

No `recording.json`, no recording: it is written last, and the finished folder then takes the target's place in one
step, so a killed run leaves either the old recording or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from nest_ssl.base.errors import UserError, write_errors
from nest_ssl.base.files import lock, partial_path, remove_leftovers, replace_folder, sha256_of, write_atomically
from nest_ssl.base.nested import tensors
from nest_ssl.base.safe_load import load_tensors
from nest_ssl.recording import layout as files
from nest_ssl.recording.index import Index, sealed
from nest_ssl.recording.saving import after_what_is_queued, save
from nest_ssl.recording.spill import Digests, Spill
from nest_ssl.recording.tensors import describe_tensor, storable, tensor_digest

THREADS = "recording-"  # what the names of a writer's threads begin with
HASHERS = min(8, os.cpu_count() or 1)  # threads that hash what is written
R = TypeVar("R")
TOGETHER = 1 << 22  # bytes of tensors that are hashed in one go: handing over each small one would take longer
# Of a file, by their paths: shape and dtype, and digests of several with the place among them.
Tensors = dict[str, tuple[dict[str, Any], Future[list[str]], int]]


class RecordingWriter(AbstractContextManager["RecordingWriter"]):
    """A recording in the making.

    As a context manager it drops what is half written unless `finish` was reached. It holds a lock on its target from
    the beginning to `finish` or `abort`.

    Args:
        target: the folder that the finished recording takes the place of.
        overwrite: whether an earlier recording there may be replaced.
        rank: which of several processes this is; None: the only one.

    Raises:
        UserError: see `reserved`.
    """

    def __init__(self, target: Path | str, overwrite: bool = False, rank: int | None = None) -> None:
        self.target, self.rank = Path(target).absolute(), rank
        with ExitStack() as held:
            self.folder = held.enter_context(reserved(self.target, overwrite))
            self._hasher = ThreadPoolExecutor(HASHERS, thread_name_prefix=f"{THREADS}hash")
            held.callback(self._hasher.shutdown, cancel_futures=True)
            self._background = ThreadPoolExecutor(1, thread_name_prefix=f"{THREADS}write")  # one: in the order given
            held.callback(self._background.shutdown, cancel_futures=True)
            self._held = held.pop_all()
        self._written: dict[str, Future[tuple[Tensors | None, Future[dict[str, Any]]]]] = {}
        self._spills: dict[str, Spill] = {}
        # Of these files those that may not be on the disk yet, and those that may not be hashed: at no step are all
        # files of the run gone through.
        self._writing: deque[str] = deque()
        self._hashing: deque[str] = deque()
        self._before = 0  # of the latter, those that there were at the last `keep_up`

    def __exit__(self, *error: object) -> None:
        self.abort()

    def save_tensors(self, name: str, value: Any, owned: bool = False) -> None:
        """Write nested tensors and builtins as `torch.save` does; their digests go to the index.

        Args:
            value: or a function that makes it, when all that was saved before is on the disk.
            owned: whether nothing changes it any more. Then it is written in the background, and what goes wrong shows
                with the next file at the earliest, with `wait` at the latest.

        Raises:
            UserError: it cannot be written, or a file before it could not.
        """
        spill = self._spills.pop(name, None)

        def write(path: Path) -> tuple[Tensors, str]:
            made = storable(value() if callable(value) else value)
            written = save(made, path, spill)
            found = dict(tensors(made))
            if not owned or any(tensor.device.type != "cpu" for tensor in found.values()):
                # What is on the disk: training goes on with what is in memory.
                found = dict(tensors(load_tensors(path, mapped=True)))
            known = spill.digests if spill else {}
            places = known | self._hashed({id(each): each for each in found.values() if id(each) not in known})
            return {place: (describe_tensor(each), *places[id(each)]) for place, each in found.items()}, written

        self._write(name, write, owned)

    def spill(self, name: str, room: int = 0) -> Spill:
        """For tensors of a file before `save_tensors` is given all of it, or `leave` says that it never will be.

        Args:
            room: bytes of memory that may wait to be written; 1 GB at least.
        """
        made = Spill(self.folder / name, f"{self.target / name}", self._background.submit, self._hashed, room)
        self._spills[name] = made
        return made

    def leave(self, name: str) -> None:
        """The file is not written: what went to the disk of it goes."""
        if name in self._spills:
            self._spills.pop(name).drop()

    def _hashed(self, found: Mapping[int, torch.Tensor]) -> Digests:
        """Digests in the making of tensors by their ids: once what stands in many places."""
        places: Digests = {}
        group: list[torch.Tensor] = []
        size = 0
        for number, tensor in enumerate(found.values(), 1):
            group.append(tensor)
            size += tensor.numel() * tensor.itemsize
            if number == len(found) or size >= TOGETHER:
                digests = self._hasher.submit(list, map(tensor_digest, group))  # lazily: in the thread
                places |= {id(each): (digests, place) for place, each in enumerate(group)}
                group, size = [], 0
        return places

    def save_json(self, name: str, value: Any) -> None:
        """Write builtins as JSON; or what a function gives, as `save_text`."""

        def text() -> str:
            return json.dumps(value() if callable(value) else value, indent=1) + "\n"

        self.save_text(name, text if callable(value) else text())

    def save_text(self, name: str, text: str | Callable[[], str]) -> None:
        """Write text as UTF-8; where it is a function that makes it, in the background, as `save_tensors` does."""
        made = text if callable(text) else lambda: text
        self._write(name, lambda path: path.write_bytes(made().encode()), callable(text))

    def save_builtins(self, name: str, value: Any) -> None:
        """Write plain builtins with `pickle` (the name `model_structure.pkl` is a contract)."""
        self._write(name, lambda path: path.write_bytes(pickle.dumps(value, protocol=4)))

    def beside(self, job: Callable[[], R]) -> Future[R]:
        """Do `job` in a thread that hashes; what it reads of a device is as it is now."""
        return self._hasher.submit(after_what_is_queued(job))

    def wait(self, hashed: bool = True) -> None:
        """Until all that was saved is on the disk, and hashed.

        Raises:
            UserError: some of it could not be written.
        """
        while self._writing:
            self._one_written()
        for content, whole in (written.result() for written in self._written.values()) if hashed else ():
            wait([digests for _, digests, _ in (content or {}).values()])
            wait([whole])

    def keep_up(self) -> None:
        """Until all that was saved is on the disk, and what was saved before the last call of this is hashed too: what
        is hashed is in memory until then, and hashing may be slower than training.

        Raises:
            UserError: some of it could not be written.
        """
        while self._writing:
            self._one_written()
        for _ in range(self._before):
            content, _ = self._written[self._hashing.popleft()].result()
            wait([digests for _, digests, _ in (content or {}).values()])
        self._before = len(self._hashing)

    def _one_written(self) -> None:
        """Until the next file is on the disk; one that could not be written stays the next."""
        self._written[self._writing[0]].result()
        self._hashing.append(self._writing.popleft())

    def finish(self, index: Mapping[str, Any]) -> Path:
        """Write `recording.json` and put the recording in its place; returns the place. Once is enough.

        Raises:
            UserError: `index` has a field that `Index` does not have or of another type, or the recording cannot be
                written.
        """
        if not self.folder.exists():
            return self.target
        made: dict[str, dict[str, Any]] = {"tensors": {}, "files": {}}
        for name, (content, hashed) in ((name, written.result()) for name, written in self._written.items()):
            made["files"][name] = hashed.result()
            if content is not None:
                described = {
                    place: {**facts, "digest": digests.result()[number]}
                    for place, (facts, digests, number) in content.items()
                }
                made["tensors"][name] = described
        whole = {"schema": files.SCHEMA, **index, **made}
        try:
            Index.model_validate_json(json.dumps(whole))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(
                "a recording needs other facts", f"{where}: {first['msg']}", "See recording/index.py."
            ) from error
        with write_errors(str(self.target)):
            write_atomically(self.folder / files.INDEX, json.dumps(sealed(whole), indent=1) + "\n")
            replace_folder(self.folder, self.target)
        self.abort()
        return self.target

    def abort(self) -> None:
        """Drop what was written; an earlier recording in the target's place is left as it was. Harmless afterwards."""
        self._held.close()

    def _write(self, name: str, write: Callable[[Path], Any], later: bool = False) -> None:
        """Have `write` make the file, now or in the background, and the file hashed when it is there."""
        assert name not in self._written, f"{name} is written twice"
        while self._writing and self._written[self._writing[0]].done():
            self._one_written()
        path = self.folder / name

        def job() -> tuple[Tensors | None, Future[dict[str, Any]]]:
            with write_errors(f"{self.target / name}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                made = write(path)
            content, known = made if isinstance(made, tuple) else (None, "")

            def described() -> dict[str, Any]:
                return {"bytes": path.stat().st_size, "sha256": known or sha256_of(path)}

            return content, self._hasher.submit(described)

        if later:
            self._written[name] = self._background.submit(after_what_is_queued(job))
        else:
            done: Future[Any] = Future()
            done.set_result(job())
            self._written[name] = done
        self._writing.append(name)


@contextmanager
def reserved(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `target` to write to, and a lock on `target`. What is still in the folder in the end goes.

    Raises:
        UserError: the target holds an earlier recording and `overwrite` is off, holds something that is no recording,
            cannot be written, or another process records there.
    """
    folder = partial_path(target)
    check_target(target, overwrite)
    with ExitStack() as held:
        with write_errors(str(target)):
            held.enter_context(lock(target.with_name(f".{target.name}.lock"), "recording", target))
            remove_leftovers(target)
            check_target(target, overwrite)  # again: an earlier one may have been put back
            folder.mkdir()
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse, before anything is run, a target that must not be replaced.

    Raises:
        UserError: see `reserved`.
    """
    with write_errors(str(target)):
        place = next((folder for folder in target.absolute().parents if folder.exists()), target.absolute())
        if not place.is_dir():
            raise OSError(errno.ENOTDIR, "")
        if not os.access(place, os.W_OK | os.X_OK):
            raise OSError(errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES, "")
        if not target.exists():
            return
        if not target.is_dir():
            raise UserError("the output folder is a file", str(target), "Choose another output_dir.")
        if any((target / index).exists() for index in (files.INDEX, files.RANKS)):
            if not overwrite:
                fix = "Pass overwrite=true (in Python overwrite=True) to replace it, or choose another output_dir."
                raise UserError("an earlier recording is there", str(target), fix)
        elif any(target.iterdir()):
            fix = "Choose an empty or new output_dir; nothing was deleted."
            raise UserError("the output folder holds files that are no recording", str(target), fix)
