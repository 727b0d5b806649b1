"""How the loops are compiled: for this processor, kept on disk where a place can be written, free of Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

# Dividing by zero gives what NumPy gives; Python's error would be a branch in each loop.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
Function = TypeVar("Function", bound=Callable[..., Any])


def jit(signature: Any) -> Callable[[Function], Function]:
    """Compile a function for one signature, at once. It may call others of its own file, for numba's cache does not
    notice that those of another one changed.

    No order of operations is changed and no product is contracted with a sum (numba's own default), so that a loop
    rounds as it is written.

    Raises:
        ImportError: NUMBA_DISABLE_JIT has numba compile nothing.
    """
    if numba.config.DISABLE_JIT:
        raise ImportError("NUMBA_DISABLE_JIT")

    def compiled(function: Function) -> Function:
        try:
            made: Function = numba.njit(signature, cache=True, **OPTIONS)(function)
        except Exception:  # noqa: BLE001  (no place can be written, or what is there, unpickled, is damaged)
            made = numba.njit(signature, **OPTIONS)(function)
        return made

    return compiled
