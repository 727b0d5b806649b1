"""Whether compiled loops may stand in torch's place, and where they are."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

# Files beside this one.
MERSENNE_TWISTER, ELEMENTWISE, MOMENTS, PAIRS = "mersenne_twister", "elementwise", "moments", "pairs"
DEPTHWISE, HASHES = "depthwise", "hashes"


def may_compute(x: Tensor) -> bool:
    """Whether torch would compute with `x` on a CPU, and its operators are neither watched nor rewritten."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():  # first: what is compiled can ask for no more
        return False
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided and x.device.type == "cpu"
    rewritten = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    return plain and not x.is_neg() and not rewritten and _get_current_dispatch_mode() is None


@cache
def loops(name: str) -> ModuleType | None:
    """The file of loops of that name, or None where there is no numba, or one that this processor or NumPy is too new
    for. Whether they round and draw as torch does is for the caller to try."""
    try:
        return import_module(f"nest_ssl.kernels.{name}")
    except (ImportError, SystemError):
        return None


def load() -> None:
    """Import the loops of training now: before a model has its weights, for what numba allocates between those that are
    freed again keeps their memory from being used as a whole (0.3 GB at large)."""
    for name in (MERSENNE_TWISTER, ELEMENTWISE, MOMENTS, PAIRS, DEPTHWISE):
        loops(name)
