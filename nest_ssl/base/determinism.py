"""One seed for every generator, one set of flags for every kernel, and both told to the recording.

NeMo's own training script never seeds. Nothing here switches randomness off: it makes it repeatable.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import seed_everything

# Must be set before CUDA's libraries load; harmless elsewhere.
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0"}


def set_determinism() -> dict[str, Any]:
    """Ask every library for repeatable kernels; returns the flags as they then stand.

    An operation that has no repeatable kernel warns instead of failing, since NeMo's forward must be run as it is.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(True, warn_only=True)
    return flags()


def seed_all(seed: int) -> None:
    """Seed Python's `random`, NumPy, torch on the CPU and on every GPU, and (through Lightning) loader workers."""
    seed_everything(seed, workers=True, verbose=False)


def generator_states() -> dict[str, Any]:
    """The state of every generator that `seed_all` seeds, as builtins and tensors (a weights-only load reads them).

    Keys `python`, `numpy`, `torch_cpu` and, where CUDA is in use, `torch_cuda` (one state a device).
    """
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    numpy = [str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)]
    states = {"python": random.getstate(), "numpy": numpy, "torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["torch_cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put every generator back into a state from `generator_states`; the numbers then drawn are the same bits."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch_cpu"])
    if "torch_cuda" in states and torch.cuda.is_initialized():
        for device, state in enumerate(states["torch_cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def flags() -> dict[str, Any]:
    """The determinism flags now in force."""
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        "mkldnn": torch.backends.mkldnn.enabled,
    }
