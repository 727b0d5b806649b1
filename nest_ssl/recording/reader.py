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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import is_regular, sha256_of
from nest_ssl.base.nested import plain
from nest_ssl.base.safe_load import READER_ERRORS, first_line, load_tensors, load_yaml
from nest_ssl.recording import layout as files
from nest_ssl.recording import schema1
from nest_ssl.recording.calls import Call
from nest_ssl.recording.evidence import LearningRates, StepOperators
from nest_ssl.recording.index import Boundary, Index, StepFacts, StepRandom, Structure, canonical
from nest_ssl.recording.tensors import check_storable, describe_tensors

T = TypeVar("T")
F = TypeVar("F", bound=BaseModel)


_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _with_names(group: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(group.get("params"), list) or not all(isinstance(name, str) for name in group["params"]):
        raise ValueError("params has to be a list of names")
    return group


class OptimizerState(TypedDict):
    """By parameter name; every group has the names of its parameters as `params`, and its settings."""

    state: dict[str, dict[str, Any]]
    param_groups: list[Annotated[dict[str, Any], AfterValidator(_with_names)]]


@with_config(_CONFIG)
class _Changes(TypedDict):
    """A table as far as it differs from the one in another file, `base`."""

    base: str
    names: list[str]
    entries: dict[str, Any]


@with_config(_CONFIG)
class _OptimizerStart(_Changes):
    param_groups: list[Annotated[dict[str, Any], AfterValidator(_with_names)]]


@with_config(_CONFIG)
class _Applied(TypedDict):
    norm: torch.Tensor | None
    factor: torch.Tensor | None
    scaled: list[str]
    entries: dict[str, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class AppliedGradients:
    """Gradients as the optimizer used them.

    Args:
        gradients: of every trained parameter.
        norm: the norm of all of backward's gradients together, before clipping.
        factor: what gradients were multiplied by, if one number says it (in every bit); those are `scaled`.
        edited: names of those that changed in any other way.
    """

    gradients: dict[str, torch.Tensor | None]
    norm: torch.Tensor | None
    factor: torch.Tensor | None
    scaled: list[str]
    edited: list[str]


AGAIN = "record it again (make nemo, make nest)."
RERUN = f"Copy it again, or {AGAIN}"
MOST_TEXT = 1 << 28  # bytes of a file that is read as a whole
_NESTED = TypeAdapter(Any)
_BY_NAME = TypeAdapter(dict[str, Any], config=_CONFIG)
_TENSORS = TypeAdapter(dict[str, torch.Tensor], config=_CONFIG)
_GRADIENTS = TypeAdapter(dict[str, torch.Tensor | None], config=_CONFIG)
_STATES = TypeAdapter(dict[str, dict[str, torch.Tensor]], config=_CONFIG)
_OPTIMIZER = TypeAdapter(OptimizerState)
_CHANGES = TypeAdapter(_Changes)
_OPTIMIZER_START = TypeAdapter(_OptimizerStart)
_APPLIED = TypeAdapter(_Applied)
_ENTRIES = TypeAdapter(dict[str, dict[str, Any]])
_CALLS = TypeAdapter(list[Call])
# What protocol 4 writes for str, int, float, bool, None, list, tuple and dict; no other opcode is read.
_BUILTIN_OPCODES = frozenset(
    "PROTO FRAME STOP MARK MEMOIZE BINGET LONG_BINGET NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "SHORT_BINUNICODE BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM "
    "SETITEMS".split()
)


class StepFiles:
    """What was recorded of one training step. Every method maps its file afresh, so drop what you no longer need.

    Raises:
        UserError: (every method) the file is damaged, or holds anything but what it should.
    """

    def __init__(self, recording: Recording, number: int, rank: int) -> None:
        self._recording, self._number, self._rank = recording, number, rank
        self.folder = files.step_folder(number, rank, recording.world_size)

    def has(self, name: str) -> bool:
        """Whether the file, named as in `layout`, was recorded."""
        return f"{self.folder}/{name}" in self._recording.index.files

    def batch(self) -> Any:
        return self._load(files.BATCH, _NESTED)

    def forward_output(self) -> dict[str, Any]:
        return self._load(files.FORWARD_OUTPUT, _BY_NAME)

    def loss(self) -> dict[str, torch.Tensor]:
        return self._load(files.LOSS, _TENSORS)

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """By parameter; None where backward reached none."""
        return self._load(files.GRADIENTS, _GRADIENTS)

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers after the step."""
        return self._load(files.WEIGHTS, _TENSORS)

    def optimizer_state(self) -> OptimizerState:
        return self._load(files.OPTIMIZER, _OPTIMIZER)

    def start_weights(self) -> dict[str, torch.Tensor] | None:
        """Parameters and buffers before the step; None if they are not known.

        In recordings without a file of them they are those that the step before left, or the initial ones.
        """
        recording, before = self._recording, self._before()
        if self.has(files.STEP_START):
            bases = {files.INITIAL_WEIGHTS: recording.initial_weights}
            bases |= {f"{before.folder}/{files.WEIGHTS}": before.weights} if before else {}
            return self._whole(files.STEP_START, self._load(files.STEP_START, _CHANGES), bases, _TENSORS)
        if self._number == (recording.index.resumed_from.batches if recording.index.resumed_from else 0):
            return recording.initial_weights()
        return before.weights() if before and before.has(files.WEIGHTS) else None

    def changed_weights(self) -> list[str] | None:
        """Names of those that were not any more what the step before had left; None if that is not known."""
        if not self.has(files.STEP_START):
            return None
        changes = self._load(files.STEP_START, _CHANGES)
        return list(changes["entries"]) if changes["base"] else None

    def start_optimizer_state(self) -> dict[str, dict[str, Any]] | None:
        """The optimizer's state before this step's update, by parameter; None if it made none, or it is not known."""
        if not self.has(files.OPTIMIZER_START):
            return None
        before = self._before()
        bases = {f"{before.folder}/{files.OPTIMIZER}": lambda: before.optimizer_state()["state"]} if before else {}
        changes = self._load(files.OPTIMIZER_START, _OPTIMIZER_START)
        return self._whole(files.OPTIMIZER_START, changes, bases, _ENTRIES)

    def start_groups(self) -> list[dict[str, Any]] | None:
        """Settings of the parameter groups with which this step's update was made, as in `optimizer_state`; or None."""
        has = self.has(files.OPTIMIZER_START)
        return self._load(files.OPTIMIZER_START, _OPTIMIZER_START)["param_groups"] if has else None

    def applied_gradients(self) -> AppliedGradients | None:
        """What the optimizer used, after clipping; None if it made no step with this batch, or it is not known."""
        if not self.has(files.APPLIED_GRADIENTS):
            return None
        found = self._load(files.APPLIED_GRADIENTS, _APPLIED)
        table = self.gradients() if self.has(files.GRADIENTS) else {}
        with _damage(self._recording.path / self.folder / files.APPLIED_GRADIENTS):
            for name in found["scaled"]:
                raw, factor = table[name], found["factor"]
                if raw is None or factor is None or factor.numel() != 1:
                    raise ValueError(f"scaled: {name} has nothing to be multiplied")
                table[name] = raw * factor
        return AppliedGradients(
            {**table, **found["entries"]}, found["norm"], found["factor"], found["scaled"], list(found["entries"])
        )

    def facts(self) -> StepFacts | None:
        """Small facts about the step; None in recordings that have none."""
        return self._recording.read_json(f"{self.folder}/{files.FACTS}", StepFacts)

    def operators(self) -> StepOperators | None:
        """The ATen operators of the step; None where they were not recorded."""
        return self._recording.read_json(f"{self.folder}/{files.OPERATORS}", StepOperators)

    def gradients_before(self) -> dict[str, str | None] | None:
        """What ``.grad`` held when backward began: None, ``"zero"``, or a digest; None if that is not known."""
        facts = self.facts()
        return dict(facts.gradients_before) if facts and facts.gradients_before is not None else None

    def state_at(self, boundary: Boundary | Literal["fetch"]) -> dict[str, bytes] | None:
        """Whole states of the generators, for `base.rng.set_state`; None where they were not kept.

        Kept are those of ``batch_ready`` and of ``fetch``, where the making of the batch began.
        """
        rng = self.rng()
        digests = rng.fetch if boundary == "fetch" else rng.states.get(boundary)
        states = self.generator_states() if digests and self.has(files.GENERATOR_STATES) else {}
        if not digests or any(digest not in states.get(generator, {}) for generator, digest in digests.items()):
            return None
        return {generator: states[generator][digest].numpy().tobytes() for generator, digest in digests.items()}

    def rng(self) -> StepRandom:
        """Digests of every generator's state at the step's boundaries, and the ledger of draws."""
        path = self._recording.listed(f"{self.folder}/{files.RNG}")
        with _damage(path):
            raw = json.loads(_read(path))
            raw = schema1.upgrade_rng(raw) if self._recording.index.schema_name == files.SCHEMA_1 else raw
            return StepRandom.model_validate_json(json.dumps(raw))

    def generator_states(self) -> dict[str, dict[str, torch.Tensor]]:
        """Whole states from which a call drew: of each generator, by digest, the bytes of `base.rng.state_bytes`."""
        states = self._load(files.GENERATOR_STATES, _STATES)
        with _damage(self._recording.path / self.folder / files.GENERATOR_STATES):
            for digest, state in ((d, s) for by_digest in states.values() for d, s in by_digest.items()):
                if hashlib.sha256(state.numpy().tobytes()).hexdigest()[:16] != digest:
                    raise ValueError(f"the state {digest} is another one")
        return states

    def calls(self) -> list[Call]:
        """Every call of every module, in the order in which they started."""
        return self._calls("calls")

    def later_calls(self) -> list[Call]:
        """Calls that began after the loss was known, as when backward runs a part again; numbered on their own."""
        return self._calls("later")

    def _calls(self, key: str) -> list[Call]:
        raw = self._load(files.CALLS, _BY_NAME)
        with _damage(self._recording.path / self.folder / files.CALLS):
            rows = raw.get(key, [])
            is_1 = self._recording.index.schema_name == files.SCHEMA_1
            calls = _CALLS.validate_python(schema1.upgrade_calls(rows) if is_1 else [Call(**row) for row in rows])
            for place, call in enumerate(calls):
                known = all(0 <= index < len(calls) for index, _ in call.producers.values())
                if (
                    call.index != place
                    or len(call.args) != len(call.arg_names)
                    or not 0 <= call.start <= call.end
                    or not known
                ):
                    raise ValueError(f"{key}.{place}: its numbers do not fit each other")
            if key == "calls" and [call.name for call in calls] != self._recording.index.calls.get(self._number):
                raise ValueError(f"its calls are not those that {files.INDEX} lists")
            return calls

    def _before(self) -> StepFiles | None:
        """The step before this one, if it was recorded."""
        recorded = self._number - 1 in self._recording.index.steps
        return self._recording.step(self._number - 1, self._rank) if recorded else None

    def _whole(
        self, name: str, changes: _Changes, bases: Mapping[str, Callable[[], Mapping[str, Any]]], shape: TypeAdapter[T]
    ) -> T:
        """The table of which `changes` were recorded in file `name`; `bases` read what they may build upon."""
        base, entries = changes["base"], changes["entries"]
        with _damage(self._recording.path / self.folder / name):
            if base and base not in bases:
                raise ValueError(f"base: {base} is not of the step before")
            table = bases[base]() if base else {}
            if missing := [n for n in changes["names"] if n not in entries and n not in table]:
                raise ValueError(f"names: nothing is recorded of {missing[0]}")
            return shape.validate_python({n: entries[n] if n in entries else table[n] for n in changes["names"]})

    def _load(self, name: str, shape: TypeAdapter[T]) -> T:
        return self._recording.load(f"{self.folder}/{name}", shape)


class Recording:
    """A finished recording on disk; make one with `open_recording`."""

    def __init__(self, path: Path, index: Index, verified: bool) -> None:
        self.path = path
        self.index = index
        self._verified = verified

    @cached_property
    def config(self) -> dict[str, Any]:
        path = self.listed(files.CONFIG)
        with _damage(path):
            return _BY_NAME.validate_python(plain(load_yaml(_read(path), files.CONFIG)))

    @cached_property
    def structure(self) -> Structure:
        path = self.listed(files.STRUCTURE)
        with _damage(path):
            return Structure.model_validate(load_builtins(_read(path)))

    @property
    def steps(self) -> list[int]:
        return sorted(self.index.steps)

    @property
    def world_size(self) -> int:
        return self.index.world_size

    def step(self, number: int, rank: int = 0) -> StepFiles:
        return StepFiles(self, number, rank)

    def initial_weights(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers before the first step."""
        return self.load(files.INITIAL_WEIGHTS, _TENSORS)

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
        with _damage(path):
            return kind.model_validate_json(_read(path))

    def listed(self, name: str) -> Path:
        """The path of a file that the index lists.

        Raises:
            UserError: it does not.
        """
        if name not in self.index.files:
            raise UserError("damaged recording", f"{self.path / files.INDEX} does not list {name}", RERUN)
        return self.path / name

    def load(self, name: str, shape: TypeAdapter[T]) -> T:
        """Map one `torch.save` file of tensors and builtins, and check it against `shape` and the index.

        Where the files were not verified as a whole, the digests of what is read here are.

        Raises:
            UserError: the file is damaged, or holds anything else.
        """
        path = self.listed(name)
        with _damage(path):
            value = load_tensors(path, mapped=True)
            check_storable(value, path.stat().st_size)
            wanted, found = self.index.tensors.get(name, {}), describe_tensors(value, digests=not self._verified)
            if list(wanted) != list(found):
                raise ValueError(f"its tensors are not those that {files.INDEX} lists")
            for place, facts in found.items():
                if any(getattr(wanted[place], key) != fact for key, fact in facts.items()):
                    raise ValueError(f"{place}: it is not the tensor that {files.INDEX} lists")
            return shape.validate_python(value)


def open_recording(path: Path | str, verify: bool = True) -> Recording:
    """Open the recording in folder `path`.

    Args:
        verify: compare every file's SHA-256 with the index now. Otherwise only what is read later is compared.

    Raises:
        UserError: no recording there, half written, damaged, or of another schema.
    """
    path = Path(path)
    index = _read_index(path)
    root = os.path.realpath(path)
    for name, entry in index.files.items():
        where = path / name
        if not os.path.realpath(where).startswith(root + os.sep):
            fix = f"Copy the files themselves, not links to them, or {AGAIN}"
            raise UserError("damaged recording", f"{where} is outside its folder", fix)
        if not is_regular(where):
            what = "no regular file" if os.path.lexists(where) else "missing"
            raise UserError("damaged recording", f"{where} is {what}", RERUN)
        if (size := where.stat().st_size) != entry.bytes:
            raise UserError("damaged recording", f"{where} has {size:,} bytes, not {entry.bytes:,}", RERUN)
    recording = Recording(path, index, verify)
    if verify:
        with ThreadPoolExecutor(max_workers=2) as pool, _damage(path):
            for name, found in zip(index.files, pool.map(lambda n: sha256_of(path / n), index.files), strict=True):
                if found != index.files[name].sha256:
                    raise UserError("damaged recording", f"{path / name} differs from its SHA-256", RERUN)
    assert recording.config is not None and recording.structure is not None  # read now: what is wrong shows early
    return recording


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


def _read_index(path: Path) -> Index:
    if path.exists() and not path.is_dir():
        fix = f"Give its folder: {path.parent}" if path.name == files.INDEX else "Give the folder of a recording."
        raise UserError("a recording is a folder", f"{path} is none", fix)
    if not path.is_dir():
        raise UserError("no such recording", str(path), "Check the path; make nemo and make nest write recordings.")
    index_path = path / files.INDEX
    if not is_regular(index_path):
        what = f"has no regular file {files.INDEX}" if os.path.lexists(index_path) else f"has no {files.INDEX}"
        fix = f"Check the path; where a run was stopped before it was done, {AGAIN}"
        raise UserError("not a complete recording", f"{path} {what}", fix)
    with _damage(index_path):
        raw = json.loads(_read(index_path))
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


def _read(path: Path) -> bytes:
    if path.stat().st_size > MOST_TEXT:
        raise ValueError(f"more than {MOST_TEXT:,} bytes")
    return path.read_bytes()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever goes wrong while `path` is read is damage of it, in one line."""
    try:
        yield
    except UserError as error:
        if error.fix.endswith(AGAIN):
            raise
        raise UserError("damaged recording", f"{path}: {error.what}", RERUN) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError("damaged recording", f"{path}: {where}: {first['msg']}", RERUN) from error
    except (OSError, *READER_ERRORS) as error:
        raise UserError("damaged recording", f"{path}: {first_line(error)}", RERUN) from error
