"""What a model is made of, in plain builtins: modules and classes, parameters and buffers with shapes and flags."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from nest_ssl.base.files import sha256_of
from nest_ssl.recording.tensors import describe_tensor


def describe_structure(model: nn.Module) -> dict[str, Any]:
    """The content of `model_structure.pkl`. The root module has the empty name."""
    persistent = set(model.state_dict().keys())
    return {
        "modules": [{"name": n, "class": qualified_name(m), "training": m.training} for n, m in model.named_modules()],
        "parameters": [
            {"name": n, **describe_tensor(p), "requires_grad": p.requires_grad} for n, p in model.named_parameters()
        ],
        "buffers": [{"name": n, **describe_tensor(b), "persistent": n in persistent} for n, b in model.named_buffers()],
    }


def describe_sources(model: nn.Module) -> dict[str, dict[str, str]]:
    """For every module class: the file that it came from, and the hash of that file."""
    sources: dict[str, dict[str, str]] = {}
    hashes: dict[str, str] = {}
    for module in model.modules():
        name = qualified_name(module)
        if name not in sources and (file := _source_file(type(module))):
            hashes.setdefault(file, sha256_of(Path(file)))
            sources[name] = {"file": _below_package(file, type(module)), "sha256": hashes[file]}
    return sources


def qualified_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _source_file(kind: type) -> str | None:
    try:
        return inspect.getsourcefile(kind)
    except TypeError:  # a class made in a session, not in a file
        return None


def _below_package(file: str, kind: type) -> str:
    """`nemo/core/x.py`, not where this machine keeps its packages."""
    depth = kind.__module__.count(".") + 1
    return "/".join(Path(file).parts[-depth:])
