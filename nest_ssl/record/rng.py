"""Digests of every random generator's state, taken at the boundaries of a step.

Two trainers that drew the same numbers have the same digests; the first boundary at which they differ says in which
part of the step one of them drew something else.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch

BOUNDARIES = ("batch_ready", "forward_done", "backward_done", "step_done")


def rng_digests() -> dict[str, str]:
    """State digests (16 hex digits of SHA-256) of Python's, NumPy's, torch's CPU and every CUDA generator."""
    states = {
        "python": repr(random.getstate()).encode(),
        "numpy": _numpy_state(),
        "torch_cpu": torch.get_rng_state().numpy().tobytes(),
    }
    for device in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        states[f"torch_cuda_{device}"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return {name: hashlib.sha256(state).hexdigest()[:16] for name, state in states.items()}


def _numpy_state() -> bytes:
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return b"|".join([str(name).encode(), keys.tobytes(), str((position, has_gauss, cached)).encode()])
