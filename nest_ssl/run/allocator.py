"""What the C library does with memory that a trainer has freed: keep it for what is asked for next, on both sides.

By default glibc gives large blocks back to the system at once, and the next step's tensors are given new pages, each
filled with zeros by the kernel: with 8 x 16 s a third of NeMo's time (docs/benchmarks.md), and more where threads of
the recorder run beside. No number that is computed changes.
"""

from __future__ import annotations

import ctypes
import os

# By their numbers in glibc's malloc.h, and what they are set to; source: mallopt(3).
M_TRIM_THRESHOLD, NEVER = -1, -1  # the heap's end is not given back
M_MMAP_MAX, NONE = -4, 0  # and no block lies outside of the heap, as those do that go back when they are freed
ONES_OWN = ("MALLOC_", "GLIBC_TUNABLES")  # beginnings of the variables that set the same


def keep_freed_memory() -> bool:
    """Set it for this process; False where the environment sets the allocator, or where it is not glibc's."""
    if any(name.startswith(ONES_OWN) for name in os.environ):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # not on macOS; musl's libc has none either
    return set_option is not None and all(
        set_option(option, value) == 1 for option, value in ((M_TRIM_THRESHOLD, NEVER), (M_MMAP_MAX, NONE))
    )
