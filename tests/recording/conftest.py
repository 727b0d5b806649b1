"""A small recording of each schema, and ways to damage one as a forger would: so that its hashes agree."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import leaves
from nest_ssl.recording import layout as files
from nest_ssl.recording.index import sealed
from nest_ssl.recording.layout import step_folder
from nest_ssl.recording.reader import Recording, StepFiles, open_recording
from nest_ssl.recording.tensors import describe_tensors, tensor_digest
from nest_ssl.recording.writer import RecordingWriter

SCHEMA1 = Path(__file__).parent / "schema1"
TRAINER = {"name": "test", "package": "p", "version": "1", "class": "p.Model"}


def rewrite(source: Path, target: Path) -> Path:
    """The same recording, written as today's writer does."""
    recording = open_recording(source)
    raw = json.loads((source / files.INDEX).read_text())
    with RecordingWriter(target) as writer:
        writer.save_text(files.CONFIG, (source / files.CONFIG).read_text())
        writer.save_builtins(files.STRUCTURE, recording.structure.model_dump(by_alias=True))
        writer.save_tensors(files.INITIAL_WEIGHTS, recording.initial_weights())
        for number in recording.steps:
            step = recording.step(number)
            for name, value in {
                files.BATCH: step.batch(),
                files.FORWARD_OUTPUT: step.forward_output(),
                files.LOSS: step.loss(),
                files.GRADIENTS: step.gradients(),
                files.WEIGHTS: step.weights(),
                files.OPTIMIZER: step.optimizer_state(),
                files.CALLS: {"calls": [call.as_builtins() for call in step.calls()]},
                files.GENERATOR_STATES: {"torch_cpu": {hashlib.sha256(b"\0" * 8).hexdigest()[:16]: STATE}},
                **starts(recording, number),
            }.items():
                writer.save_tensors(f"{step.folder}/{name}", value)
            writer.save_json(f"{step.folder}/{files.FACTS}", FACTS)
            writer.save_json(f"{step.folder}/{files.RNG}", step.rng().model_dump())
        ledger = [entry.model_dump() for entry in recording.index.ledger or []]
        kept = {key: value for key, value in raw.items() if key not in ("schema", "tensors", "files", "model_class")}
        return writer.finish({**kept, "ledger": ledger})


def starts(recording: Recording, number: int) -> dict[str, Any]:
    """What older recordings do not have: here the first weight is another one than the step before left."""
    step = recording.step(number)
    table, groups = step.start_weights(), step.optimizer_state()["param_groups"]
    assert table is not None
    before = step_folder(number - 1)
    name = next(iter(table))
    gradient = next(n for n, g in step.gradients().items() if g is not None)
    last = list(step.optimizer_state()["state"]) if number else []
    return {
        files.STEP_START: {
            "base": f"{before}/{files.WEIGHTS}" if number else files.INITIAL_WEIGHTS,
            "names": list(table),
            "entries": {name: table[name] + 1},
        },
        files.OPTIMIZER_START: {
            "base": f"{before}/{files.OPTIMIZER}" if number else "",
            "names": last,
            "entries": {},
            "param_groups": groups,
        },
        files.APPLIED_GRADIENTS: {
            "norm": torch.tensor(2.0),
            "factor": torch.tensor(0.5),
            "scaled": [gradient],
            "entries": {},
        },
    }


FACTS = {
    "training": {"": True},
    "gradients_before": {"w": "zero", "v": None, "u": "0" * 64},
    "shared": [["a", "b"]],
    "edited": ["a"],
    "schedulers": [{"class": "p.Schedule", "state": {"last_epoch": 1, "_last_lr": [0.1]}}],
}
STATE = torch.zeros(8, dtype=torch.uint8)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording, not to be changed."""
    return rewrite(SCHEMA1, tmp_path_factory.mktemp("schema2") / "run")


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "damaged"))


@pytest.fixture(params=[1, 2])
def either(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> Path:
    """The same of both schemas."""
    return Path(shutil.copytree(SCHEMA1 if request.param == 1 else whole, tmp_path / "damaged"))


def read_all(path: Path, verify: bool = True, only: str = "") -> dict[str, Any]:
    """Everything in a recording by place, or besides the index one file of a step; tensors as digests."""
    recording = open_recording(path, verify)
    parts: dict[str, Any] = {
        "index": recording.index.model_dump(exclude={"sha256"}),
        "config": recording.config,
        "structure": recording.structure.model_dump(),
    }
    if only in ("", files.INITIAL_WEIGHTS):
        parts["initial"] = recording.initial_weights()
    for number in recording.steps:
        step = recording.step(number)
        read: dict[str, Callable[[], Any]] = {
            files.BATCH: step.batch, files.FORWARD_OUTPUT: step.forward_output, files.LOSS: step.loss,
            files.GRADIENTS: step.gradients, files.WEIGHTS: step.weights, files.OPTIMIZER: step.optimizer_state,
            files.GENERATOR_STATES: step.generator_states, files.RNG: lambda step=step: step.rng().model_dump(),
            files.STEP_START: step.start_weights, files.APPLIED_GRADIENTS: lambda step=step: _applied(step),
            files.OPTIMIZER_START: lambda step=step: [step.start_optimizer_state(), step.start_groups()],
            files.FACTS: lambda step=step: step.facts().model_dump(),
            files.CALLS: lambda step=step: [c.as_builtins() for c in [*step.calls(), *step.later_calls()]],
        }  # fmt: skip
        parts |= {
            f"{number}/{name}": method()
            for name, method in read.items()
            if step.has(name) and (not only or only == f"{step.folder}/{name}")
        }
    flat = leaves(parts)
    return {place: tensor_digest(leaf) if isinstance(leaf, torch.Tensor) else leaf for place, leaf in flat}


def _applied(step: StepFiles) -> dict[str, Any]:
    applied = step.applied_gradients()
    assert applied is not None
    return {name: getattr(applied, name) for name in ("gradients", "norm", "factor", "scaled", "edited")}


def refused(path: Path, verify: bool = True, only: str = "") -> str | None:
    """The one line with which it is refused; None where all of it, or of one file, is read."""
    try:
        read_all(path, verify, only)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and str(path) in line and line.endswith("record it again (make nemo, make nest).")
        return line
    return None


def seal(path: Path, index: dict[str, Any]) -> None:
    index = (
        {key: value for key, value in index.items() if key != "sha256"}
        if index.get("schema", "").endswith("/1")
        else sealed(index)
    )
    (path / files.INDEX).write_text(json.dumps(index))


def replace(path: Path, name: str, content: bytes, tensors: Any = None) -> None:
    """Put `content` in the place of a file, its hash in the index, and the digests of `tensors`."""
    (path / name).write_bytes(content)
    index = json.loads((path / files.INDEX).read_text())
    index["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if tensors is not None:
        index["tensors"][name] = describe_tensors(tensors)
    seal(path, index)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a nesting, inner ones too."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Set, or with `...` delete, what is at a place."""
    for key in path[:-1]:
        value = value[key]
    if new is ...:
        del value[path[-1]]
    else:
        value[path[-1]] = new
