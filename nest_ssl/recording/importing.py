"""A folder of tensors, from whatever is no torch, made a recording.

    made/import.yaml                       name, package, version, class, seed: what trained; each may be left out
    made/config.yaml                       its settings, compared as part of the contract
    made/initial_weights.npz               by name; all files may be .safetensors too
    made/step_0/batch.npz                  fields, by the names that the reference has for them
    made/step_0/activations.npz            `encoder.layers.0`: what a module returned, in the order in which they ran;
                                           `encoder.layers.0#1` its second call, `.../output/0` one of several outputs,
                                           `.../inputs/x` what it was given
    made/step_0/activation_gradients.npz   what backward brought to those outputs, by the same names
    made/step_0/output.npz                 what the model returned, by name
    made/step_0/loss.npz                   one number
    made/step_0/gradients.npz              of parameters, by name, neither clipped nor used
    made/step_0/weights.npz                parameters and buffers after the step

What is not there is not made up: the recording says what it has (`imported`), and a comparison what it could not see.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nest_ssl.base.errors import UserError, from_os_error
from nest_ssl.base.safe_load import load_yaml
from nest_ssl.base.spelling import did_you_mean
from nest_ssl.recording import layout as files
from nest_ssl.recording.calls import Call
from nest_ssl.recording.tensors import describe_tensor
from nest_ssl.recording.writer import RecordingWriter

INITIAL = "initial_weights"
OF_STEP = {"batch": files.BATCH, "activations": files.CALLS, "activation_gradients": "", "output": files.FORWARD_OUTPUT,
           "loss": files.LOSS, "gradients": files.GRADIENTS, "weights": files.WEIGHTS}  # fmt: skip
SAFETENSORS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
               "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}  # fmt: skip
FACTS = ("name", "package", "version", "class", "seed")
_PLACE = re.compile(r"(?P<module>[^#/]*)(?:#(?P<call>\d+))?(?:/(?P<what>inputs|output)/(?P<slot>[\w.]+))?")
Tables = dict[str, dict[str, Tensor]]


def import_folder(source: Path, out: Path, overwrite: bool = False) -> list[str]:
    """Make the folder `source` a recording in `out`; returns a line for each thing that it does not have.

    Raises:
        UserError: a file is missing, damaged or has another name, or `out` must not be replaced.
    """
    facts = _yaml(source / "import.yaml")
    if unknown := next((key for key in facts if key not in FACTS), None):
        fix = did_you_mean(unknown, FACTS, f"It may have {', '.join(FACTS)}.")
        raise UserError("an unknown fact", f"{source / 'import.yaml'}: {unknown}", fix)
    named = sorted(p for p in source.glob("step_*") if p.is_dir() and p.name[5:].isdecimal())
    folders = {int(path.name[5:]): path for path in named}
    if twin := next((path for path in named if path not in folders.values()), None):
        raise UserError(
            "two folders of one step", f"{twin} and {folders[int(twin.name[5:])]}", "Leave one of them out."
        )
    if not folders:
        fix = "Make a folder step_0 with batch.npz, activations.npz, ... in it; see nest-ssl import --help."
        raise UserError("nothing to import", f"{source} has no folder step_0", fix)
    initial = _tables(source, (INITIAL,)).get(INITIAL, {})
    steps = {number: _tables(folder, tuple(OF_STEP)) for number, folder in sorted(folders.items())}
    has = sorted({kind for tables in steps.values() for kind in tables} | ({INITIAL} if initial else set()))
    index: dict[str, Any] = {"steps": {}, "calls": {}, "rng": {}, "seed": facts.get("seed"), "imported": has}
    defaults = {"name": source.name, "package": "", "version": "", "class": ""}
    index["trainer"] = {key: str(facts.get(key, value)) for key, value in defaults.items()}
    with RecordingWriter(out, overwrite) as writer:
        writer.save_text(files.CONFIG, yaml.safe_dump(_yaml(source / "config.yaml"), sort_keys=False))
        writer.save_tensors(files.INITIAL_WEIGHTS, initial)
        entries = [{"name": name, **describe_tensor(t), "requires_grad": True} for name, t in initial.items()]
        writer.save_builtins(files.STRUCTURE, {"modules": [], "parameters": entries, "buffers": [], "shared": None})
        for number, tables in steps.items():
            where = source / f"step_{number}"
            calls = calls_of(tables.get("activations", {}), tables.get("activation_gradients", {}), where)
            for kind in tables.keys() - {"activations", "activation_gradients"}:
                table: Any = tables[kind]
                if kind == "loss":
                    if len(table) != 1 or next(iter(table.values())).numel() != 1:
                        raise UserError("a loss is one number", str(where / "loss"), "Write one array with one number.")
                    table = {"loss": next(iter(table.values())).reshape(())}
                writer.save_tensors(f"{files.step_folder(number)}/{OF_STEP[kind]}", table)
            if calls:
                rows = {"calls": [call.as_builtins() for call in calls], "later": []}
                writer.save_tensors(f"{files.step_folder(number)}/{files.CALLS}", rows)
            facts_of_step = {"epoch": 0, "batch": number, "optimizer_stepped": "weights" in tables, "calls": len(calls)}
            index["steps"][str(number)] = facts_of_step
            index["calls"][str(number)] = [call.name for call in calls]
        writer.finish(index)
    lacking = [f"step {n}: no {', '.join(k for k in OF_STEP if k not in t)}" for n, t in steps.items() if len(t) < 7]
    return [*([] if initial else [f"no {INITIAL}"]), *lacking, "no optimizer state, no random states"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of an .npz or .safetensors file, in its order.

    Raises:
        UserError: it cannot be read, is damaged, or holds anything else.
    """
    try:
        with path.open("rb") as stream:
            return _npz(stream) if path.suffix == ".npz" else _safetensors(stream.read())
    except OSError as error:
        raise from_os_error(error, str(path)) from error
    except _Damaged as error:
        what = " ".join(str(error).split())[:120]
        raise UserError("a file of tensors that cannot be read", f"{path}: {what}", "Write it again.") from error


class _Damaged(Exception):
    """What a file itself is to blame for."""


def _npz(stream: BinaryIO) -> dict[str, Tensor]:
    """By NumPy, which says in its own words what is wrong with a file, and in those of zip, zlib and its own parser."""
    try:
        with np.load(stream, allow_pickle=False) as archive:
            arrays = {name: np.array(archive[name]) for name in archive.files}
    except OSError:  # of the disk
        raise
    except Exception as error:
        raise _Damaged(str(error) or type(error).__name__) from error
    found = {}
    for name, array in arrays.items():
        try:
            found[name] = torch.from_numpy(array)
        except (TypeError, ValueError) as error:  # text, numbers that torch does not have, the other order of bytes
            raise _Damaged(f"{name}: {error}") from error
    return found


class _Stored(BaseModel):
    """A tensor in the header of a .safetensors file."""

    model_config = ConfigDict(extra="forbid")

    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


def _safetensors(content: bytes) -> dict[str, Tensor]:
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        entries = {name: _Stored(**entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"its header: {error}") from error
    found = {}
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.dtype not in SAFETENSORS:
            raise _Damaged(f"{name} is of type {entry.dtype}, which is none of {', '.join(SAFETENSORS)}")
        dtype, (start, end) = getattr(torch, SAFETENSORS[entry.dtype]), entry.data_offsets
        data = content[8 + size + start : 8 + size + end]
        if len(data) != end - start or len(data) != math.prod(entry.shape) * dtype.itemsize:
            raise _Damaged(f"{name}: it has {len(data)} bytes of {end - start}, for the shape {entry.shape}")
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        found[name] = flat.reshape(entry.shape)
    return found


def _tables(folder: Path, kinds: tuple[str, ...]) -> Tables:
    found: Tables = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.suffix not in (".npz", ".safetensors"):
            continue
        if path.stem not in kinds:
            raise UserError("an unknown file", str(path), did_you_mean(path.stem, kinds, f"Known: {', '.join(kinds)}."))
        if path.stem in found:
            raise UserError("two files of the same", f"{path} and its twin", "Leave one of them out.")
        found[path.stem] = read_tensors(path)
    return found


def calls_of(activations: Mapping[str, Tensor], gradients: Mapping[str, Tensor], where: Path) -> list[Call]:
    """Calls in the order in which their first tensor stands.

    Of several outputs the number or name in `output/...` says which one it is, whatever the order in the file.
    """
    calls: dict[tuple[str, int], Call] = {}
    outputs: dict[tuple[str, int], dict[str, Tensor]] = {}  # of each call by slot; "" for the whole
    seen = set[tuple[object, ...]]()
    for table, is_gradient in ((activations, False), (gradients, True)):
        for name, tensor in table.items():
            place = _PLACE.fullmatch(name)
            key = (place["module"], int(place["call"] or 0)) if place else ("", -1)
            if place is None or (is_gradient and (key not in calls or place["what"] == "inputs")):
                what = "a gradient of no activation" if place else "no name of an activation"
                fix = "Write module, module#1, module/output/0 or module/inputs/x; see nest-ssl import --help."
                raise UserError(what, f"{where}: {name!r}", fix)
            what, slot = place["what"] or "output", place["slot"] or ""
            if (is_gradient, key, what, slot) in seen or (
                not is_gradient and not _fits(what, slot, outputs.get(key, {}))
            ):
                fix = "Write a module's whole output, or each of several by its number: module/output/0."
                raise UserError("two tensors for one place", f"{where}: {name!r}", fix)
            seen.add((is_gradient, key, what, slot))
            if key not in calls:
                number = len(calls)
                calls[key] = Call(number, *key, True, [], [], {}, start=2 * number, end=2 * number + 1)
            if is_gradient:
                calls[key].output_grads[slot] = tensor
            elif what == "inputs":
                calls[key].kwargs[slot] = tensor
            else:
                outputs.setdefault(key, {})[slot] = tensor
    for key, slots in outputs.items():
        numbers = [str(number) for number in range(len(slots))]
        whole = [slots[number] for number in numbers] if slots.keys() == {*numbers} else slots
        calls[key].output = slots.get("", whole)
    return list(calls.values())


def _fits(what: str, slot: str, outputs: Mapping[str, Tensor]) -> bool:
    """Whether an output may stand beside those that are there: the whole stands alone."""
    return what != "output" or not outputs or (bool(slot) and "" not in outputs)


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = load_yaml(path.read_bytes(), str(path))
    if not isinstance(found, dict):
        raise UserError("no settings", str(path), "Write key: value, a line each.")
    return found
