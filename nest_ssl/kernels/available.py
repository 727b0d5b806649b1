"""Whether compiled loops may stand in torch's place, and where they are."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


def may_compute(x: Tensor) -> bool:
    """Whether torch would compute with `x` on a CPU, and its operators are neither watched nor rewritten."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():  # first: what is compiled can ask for no more
        return False
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided and x.device.type == "cpu"
    rewritten = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return plain and not x.is_neg() and not rewritten and _get_current_dispatch_mode() is None


@cache
def elementwise() -> ModuleType | None:
    """Loops over floats, or None where there is no numba, or one that this processor or NumPy is too new for."""
    try:
        from nest_ssl.kernels import elementwise
    except (ImportError, SystemError):
        return None
    return elementwise


@cache
def mersenne_twister() -> ModuleType | None:
    """Loops of the generator; None as above. Whether they are the generator's own is for the caller to try."""
    try:
        from nest_ssl.kernels import mersenne_twister
    except (ImportError, SystemError):
        return None
    return mersenne_twister


@cache
def moments() -> ModuleType | None:
    """Loops of AdamW; None as above. Whether they round as torch does is for the caller to try."""
    try:
        from nest_ssl.kernels import moments
    except (ImportError, SystemError):
        return None
    return moments


def load() -> None:
    """Import all loops now: before a model has its weights, for what numba allocates between those that are freed
    again keeps their memory from being used as a whole (0.3 GB at large)."""
    for loops in (mersenne_twister, elementwise, moments):
        loops()
