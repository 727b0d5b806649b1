"""What the C library does with memory that a trainer has freed: keep it for what is asked for next, on both sides.

By default glibc gives large blocks back to the system at once, and the next step's tensors are given new pages, each
filled with zeros by the kernel: with 8 x 16 s an eighth of NeMo's time (docs/benchmarks.md), and more where threads of
the recorder run beside. No number that is computed changes.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys

# By their numbers in glibc's malloc.h, and what they are set to; source: mallopt(3).
M_TRIM_THRESHOLD, NEVER = -1, -1  # the heap's end is not given back
M_MMAP_MAX, NONE = -4, 0  # and the main thread has no block outside of the heap: those go back when they are freed
ONES_OWN = re.compile(r"(MALLOC_(TRIM_THRESHOLD|MMAP_MAX|MMAP_THRESHOLD|TOP_PAD)_=|GLIBC_TUNABLES=.*\bglibc\.malloc\."
                      r"(trim_threshold|mmap_max|mmap_threshold|top_pad|hugetlb))")  # fmt: skip


def keep_freed_memory() -> bool:
    """Set it for this process; False where the environment sets the same, or where the C library is not glibc.

    Processes that it forks are not given what is kept: as soon as either side wrote to it there would be two of it.
    """
    if sys.platform != "linux" or any(ONES_OWN.match(f"{name}={value}") for name, value in os.environ.items()):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # as in musl's
        return False
    os.register_at_fork(before=lambda: libc.malloc_trim(0))
    return all(libc.mallopt(option, value) == 1 for option, value in ((M_TRIM_THRESHOLD, NEVER), (M_MMAP_MAX, NONE)))
