"""Importing torch, Lightning and NeMo in less time.

They make a million objects, of which one in a hundred is garbage: to look for it again and again takes a quarter of the
time that importing them takes.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SOME = 100  # modules; what is read once more brings fewer


@contextmanager
def importing() -> Iterator[None]:
    """While the block imports, no garbage is looked for; nor is it later in what the block has brought.

    Where it brings nothing new nothing is kept: what an earlier training has left is garbage.
    """
    looked, modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - modules > SOME:
            gc.freeze()
        if looked:
            gc.enable()
