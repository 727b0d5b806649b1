"""Where in a trainer's code something runs: the innermost line outside of torch, by file and number."""

from __future__ import annotations

import linecache
import os
from collections.abc import Collection
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import torch
from torch.autograd.graph import _engine_run_backward

from nest_ssl.record.observers import calls

LONGEST = 160  # letters of a line that are kept
TORCH = str(Path(torch.__file__).parent) + os.sep
RECORD, RECORDING, BASE = (str(Path(__file__).parents[2] / room) + os.sep for room in ("record", "recording", "base"))


class SourceLines:
    """The lines that were asked for; their `texts` by ``file:line``, the file below its package.

    Args:
        unwatched: functions that are no part of training, as a logger's.
    """

    def __init__(self, unwatched: Collection[CodeType] = ()) -> None:
        self.texts: dict[str, str] = {}
        self._unwatched = unwatched
        self._sources: dict[tuple[str, int], str] = {}

    def is_watched(self, frame: FrameType | None) -> bool:
        """Whether neither the recorder nor an unwatched function is at work, where `innermost` found `frame`."""
        if frame is not None and frame.f_code.co_filename.startswith((RECORD, RECORDING)):
            return False
        while frame is not None and frame.f_code not in self._unwatched:
            frame = frame.f_back
        return frame is None

    def of(self, frame: FrameType | None) -> str:
        """``nemo/core/x.py:12``, wherever it is installed; empty for no frame."""
        if frame is None:
            return ""
        file, line = frame.f_code.co_filename, frame.f_lineno
        if (file, line) not in self._sources:
            path, module = Path(file), frame.f_globals.get("__name__", "__main__")
            depth = 1 if module == "__main__" else module.count(".") + 1 + (path.stem == "__init__")
            source = self._sources[file, line] = f"{'/'.join(path.parts[-depth:])}:{line}"
            self.texts[source] = linecache.getline(file, line).strip()[:LONGEST]
        return self._sources[file, line]


def innermost(frame: FrameType | None) -> FrameType | None:
    """The innermost frame outside of torch; None where autograd runs nodes of its own."""
    while frame is not None and frame.f_code is not _engine_run_backward.__code__:
        if not is_passed_over(frame.f_code):
            return frame
        frame = frame.f_back
    return None


@cache
def is_passed_over(code: CodeType) -> bool:
    """Torch's code, `nest_ssl.base`, code in no file, and what the recorder puts around the root's `forward`."""
    is_wrapper = code.co_filename == calls.__file__ and code.co_name == "forward"
    return is_wrapper or code.co_filename.startswith((TORCH, BASE, "<"))
