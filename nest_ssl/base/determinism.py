"""One seed for every generator, one set of flags for every kernel, both read back by whoever records them.

NeMo's own training script never seeds. Nothing here switches randomness off: it makes it repeatable.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from nest_ssl.base.errors import UserError

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
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # torch's default
    return flags()


def allow_fast_kernels() -> None:
    """Of what `set_determinism` asks for, leave out what costs time and repeats without it: TF32 on a GPU is allowed,
    and fresh memory, which nothing reads before it is written, is not filled."""
    if torch.cuda.is_available():  # without one the flag would be another setting of the CPU's products
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed_all(seed: int) -> None:
    """Seed Python's `random`, NumPy, torch on the CPU and on every GPU, and (through Lightning) loader workers.

    Raises:
        UserError: it is not a whole number from 0 to 2**32 - 1, which is what NumPy takes.
    """
    # Lightning would train with 0 in place of what is no seed, and only warn.
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise UserError("not a seed", f"seed={seed}", "Give a whole number from 0 to 4294967295.")
    from lightning.fabric.utilities.seed import seed_everything  # here: who compares needs no Lightning

    seed_everything(seed, workers=True, verbose=False)


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
