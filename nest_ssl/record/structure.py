"""What a model is made of, in plain builtins: modules and classes, parameters and buffers with shapes and flags."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from nest_ssl.base.files import sha256_of
from nest_ssl.record.observers.memory import shared_memory
from nest_ssl.recording.tensors import describe_tensor


def describe_structure(model: nn.Module) -> dict[str, Any]:
    """The content of `model_structure.pkl`. The root module has the empty name."""
    persistent = set(model.state_dict().keys())
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "modules": [{"name": n, "class": qualified_name(m), "training": m.training} for n, m in model.named_modules()],
        "parameters": [
            {"name": n, **describe_tensor(p), "requires_grad": p.requires_grad} for n, p in model.named_parameters()
        ],
        "buffers": [{"name": n, **describe_tensor(b), "persistent": n in persistent} for n, b in model.named_buffers()],
        "shared": shared_memory(every),
    }


def describe_sources(model: nn.Module) -> dict[str, dict[str, str]]:
    """For every module class: the file that it came from (`nemo/core/x.py`, wherever it is installed) and its hash."""
    sha256 = functools.cache(sha256_of)
    sources: dict[str, dict[str, str]] = {}
    for kind in {type(module): None for module in model.modules()}:
        try:
            file = inspect.getsourcefile(kind)
        except TypeError:  # a class made in a session, not in a file
            continue
        if file is not None and Path(file).is_file():
            depth = kind.__module__.count(".") + 1
            below_package = "/".join(Path(file).parts[-depth:])
            sources[f"{kind.__module__}.{kind.__qualname__}"] = {"file": below_package, "sha256": sha256(Path(file))}
    return sources


def qualified_name(instance: object) -> str:
    """Module and name of its class."""
    return f"{type(instance).__module__}.{type(instance).__qualname__}"
