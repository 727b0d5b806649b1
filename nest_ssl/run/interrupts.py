"""Ctrl-C that is not lost where no checkpoint is kept.

Python raises KeyboardInterrupt wherever the main thread is. If that is in a finalizer, in the callback of a weak
reference, or below a library's bare `except`, the exception ends there and training goes on. So it is noted as well,
and raised again at the next batch. (`Checkpoints` notes it and raises nothing before it has saved.)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Callback

from nest_ssl.base.errors import InterruptedRun


class Interrupts(Callback):
    """Ends training at the start of a batch if Ctrl-C came before and training went on."""

    def __init__(self) -> None:
        self._came = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While this is open, SIGINT is noted and then raised as ever; where it is ignored or handled, it stays so.

        Raises:
            InterruptedRun: the block ended as if nothing had come.
        """
        here = threading.current_thread() is threading.main_thread()
        if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._came:
            raise InterruptedRun(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True
        signal.default_int_handler(number, frame)

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        if self._came:
            raise KeyboardInterrupt

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        if self._came:
            raise KeyboardInterrupt
