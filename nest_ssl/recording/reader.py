"""Opens a recording for reading: checked first, then mapped, never unpickled into code.

`open_recording` refuses what is missing, half written or damaged, and every file is checked against its type when it is
read: a recording may come from a stranger. Whatever is wrong is one line that names the file and the field. Tensors are
mapped from disk, so a recording of any size can be walked in little memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pickletools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, TypeAdapter

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import is_regular, sha256_of
from nest_ssl.base.nested import plain
from nest_ssl.base.progress import bar
from nest_ssl.base.safe_load import load_tensors, load_yaml
from nest_ssl.recording import contents, schema1
from nest_ssl.recording import layout as files
from nest_ssl.recording.contents import Validation
from nest_ssl.recording.damage import AGAIN, DAMAGED, RERUN, damage, read_bytes
from nest_ssl.recording.evidence import LearningRates
from nest_ssl.recording.index import Index, Structure, canonical
from nest_ssl.recording.step_files import StepFiles
from nest_ssl.recording.tensors import check_storable, describe_tensors, mark_as_stored

T = TypeVar("T")
F = TypeVar("F", bound=BaseModel)
# What protocol 4 writes for str, int, float, bool, None, list, tuple and dict; no other opcode is read.
_BUILTIN_OPCODES = frozenset(
    "PROTO FRAME STOP MARK MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "SHORT_BINUNICODE BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM "
    "SETITEMS".split()
)


class Recording:
    """A finished recording on disk; make one with `open_recording`."""

    def __init__(self, path: Path, index: Index, verified: bool) -> None:
        self.path = path
        self.index = index
        self._verified = verified
        self._compared: set[str] = set()  # files whose tensors were compared with their digests when they were read

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.listed(files.CONFIG)
        with damage(path):
            return contents.BY_NAME.validate_python(plain(load_yaml(read_bytes(path), files.CONFIG)))

    @cached_property
    def structure(self) -> Structure:
        path = self.listed(files.STRUCTURE)
        with damage(path):
            return Structure.model_validate(load_builtins(read_bytes(path)))

    @property
    def steps(self) -> list[int]:
        return sorted(self.index.steps)

    @property
    def world_size(self) -> int:
        """Of how many processes the steps lie here; those of one rank have the rest beside them, see `ranks`."""
        return self.index.world_size if self.index.rank is None else 1

    def step(self, number: int, rank: int = 0) -> StepFiles:
        return StepFiles(self, number, rank)

    def initial_weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers before the first step."""
        return self.load(files.INITIAL_WEIGHTS, contents.TENSORS)

    def validations(self) -> list[Validation] | None:
        """Validations of the run in their order; None in recordings that do not have any for certain."""
        if self.structure.shared is None:  # written by a recorder that did not watch them
            return None
        found: list[Validation] = []
        while (name := files.validation_file(len(found))) in self.index.files:
            found.append(self.load(name, contents.VALIDATION))
        return found

    def learning_rates(self) -> LearningRates | None:
        """Of the run's schedule, over steps that it need not train; None where they were not recorded."""
        return self.read_json(files.LEARNING_RATES, LearningRates)

    def read_json(self, name: str, kind: type[F]) -> F | None:
        """A file of JSON, or None where it was not recorded.

        Raises:
            UserError: the file is damaged, or holds anything else.
        """
        if name not in self.index.files:
            return None
        path = self.listed(name)
        with damage(path):
            return kind.model_validate_json(read_bytes(path))

    def listed(self, name: str) -> Path:
        """The path of a file that the index lists.

        Raises:
            UserError: it does not.
        """
        if name not in self.index.files:
            raise UserError(DAMAGED, f"{self.path / files.INDEX} does not list {name}", RERUN)
        return self.path / name

    def load(self, name: str, shape: TypeAdapter[T]) -> T:
        """Map one `torch.save` file of tensors and builtins, and check it against `shape` and the index.

        Where the files were not verified as a whole, the digests of what is read here are, the first time.

        Raises:
            UserError: the file is damaged, or holds anything else.
        """
        path = self.listed(name)
        with damage(path):
            value = load_tensors(path, mapped=True)
            check_storable(value, path.stat().st_size)
            digests = not self._verified and name not in self._compared
            wanted, found = self.index.tensors.get(name, {}), describe_tensors(value, digests)
            if list(wanted) != list(found):
                raise ValueError(f"its tensors are not those that {files.INDEX} lists")
            for place, facts in found.items():
                if any(getattr(wanted[place], key) != fact for key, fact in facts.items()):
                    raise ValueError(f"{place}: it is not the tensor that {files.INDEX} lists")
            self._compared.add(name)
            if self._verified:
                mark_as_stored(value, self.index.files[name].sha256)
            return shape.validate_python(value)


def open_recording(path: Path | str, verify: bool = True) -> Recording:
    """Open the recording in folder `path`; see `open_recordings`."""
    return open_recordings([path], verify)[0]


def open_recordings(paths: Sequence[Path | str], verify: bool = True) -> list[Recording]:
    """Open the recordings in these folders.

    Args:
        verify: compare every file's SHA-256 with the index now, on all cores. Otherwise only what is read later is
            compared.

    Raises:
        UserError: no recording there, half written, damaged, or of another schema.
    """
    recordings = [Recording(path, read_index(path), verify) for path in map(Path, paths)]
    for recording in recordings:
        root = os.path.realpath(recording.path)
        for name, entry in recording.index.files.items():
            where = recording.path / name
            if not os.path.realpath(where).startswith(root + os.sep):
                fix = f"Copy the files themselves, not links to them, or {AGAIN}"
                raise UserError(DAMAGED, f"{where} is outside its folder", fix)
            if not is_regular(where):
                what = "no regular file" if os.path.lexists(where) else "missing"
                raise UserError(DAMAGED, f"{where} is {what}", RERUN)
            if (size := where.stat().st_size) != entry.bytes:
                raise UserError(DAMAGED, f"{where} has {size:,} bytes, not {entry.bytes:,}", RERUN)
    if verify:
        _verify(recordings)
    for one in recordings:
        assert one.config is not None and one.structure is not None  # read now: what is wrong shows early
    return recordings


def _verify(recordings: Sequence[Recording]) -> None:
    entries = [(one.path / name, entry) for one in recordings for name, entry in one.index.files.items()]
    entries.sort(key=lambda each: -each[1].bytes)  # the longest first, or it is waited for last
    with bar("checking files", sum(entry.bytes for _, entry in entries)), ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for (path, entry), found in [(each, pool.submit(sha256_of, each[0])) for each in entries]:
                with damage(path):
                    if found.result() != entry.sha256:
                        raise UserError(DAMAGED, f"{path} differs from its SHA-256", RERUN)
        finally:
            pool.shutdown(cancel_futures=True)  # whatever ends it, Ctrl-C too: what has not begun never does


def load_builtins(data: bytes) -> Any:
    """Unpickle builtins, and nothing that names, builds or calls anything or asks for memory that it does not hold.

    Raises:
        ValueError: it has another opcode.
    """
    for opcode, _, position in pickletools.genops(data):
        if opcode.name not in _BUILTIN_OPCODES:
            raise ValueError(f"byte {position} is {opcode.name}; only plain builtins are allowed")
    value = pickle.loads(data)
    check_storable(value, len(data))
    return value


def read_index(path: Path) -> Index:
    """The index in the folder `path`, without a look at the files that it lists.

    Raises:
        UserError: none there, damaged, or of another schema.
    """
    if path.exists() and not path.is_dir():
        fix = f"Give its folder: {path.parent}" if path.name == files.INDEX else "Give the folder of a recording."
        raise UserError("a recording is a folder", f"{path} is none", fix)
    if not path.is_dir():
        raise UserError("no such recording", str(path), "Check the path; make nemo and make nest write recordings.")
    index_path = path / files.INDEX
    if not is_regular(index_path):
        if is_regular(path / files.RANKS):
            first = path / files.rank_folder(0)
            raise UserError("a recording of several ranks, and one is wanted", str(path), f"Give one rank: {first}")
        what = f"has no regular file {files.INDEX}" if os.path.lexists(index_path) else f"has no {files.INDEX}"
        fix = f"Check the path; where a run was stopped before it was done, {AGAIN}"
        raise UserError("not a complete recording", f"{path} {what}", fix)
    with damage(index_path):
        raw = json.loads(read_bytes(index_path))
        schema = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        if schema not in (files.SCHEMA, files.SCHEMA_1):
            fix = f"Use the release of nest-ssl that wrote it, or {AGAIN}"
            raise UserError("unknown recording schema", f"{index_path} has {schema!r}, not {files.SCHEMA!r}", fix)
        if schema == files.SCHEMA_1:
            raw = schema1.upgrade_index(raw)
        elif raw.get("sha256") != hashlib.sha256(canonical(raw)).hexdigest():
            raise ValueError("it differs from its own SHA-256")
        index = Index.model_validate_json(json.dumps(raw))
        for name in (files.CONFIG, files.STRUCTURE, files.INITIAL_WEIGHTS):
            if name not in index.files:
                raise ValueError(f"it does not list {name}")
        return index
