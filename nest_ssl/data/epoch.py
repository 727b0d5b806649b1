"""One epoch of a loader: its batches handed out and counted, so that a resumed run can take it up where it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from nest_ssl.base.errors import UserError
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.data.skipping import LoadFailure, PartialBatch, SkippedAudio
from nest_ssl.data.torch_internals import indices_of


class Epoch:
    """The batches of one epoch, counted; a worker's `UserError` is raised as it was.

    Args:
        start: begins a pass over the data, and gives its iterator; called at once, for torch draws a base seed then.
            Its batches may be a `LoadFailure`, or, where bad audio is skipped, a `PartialBatch`.
        skipped: counts the utterances left out, see `skipping.py`; None where none may be.
        length: batches that the epoch must have; None: as many as one pass gives.
        earlier: batches of the epoch that earlier passes handed out.
    """

    def __init__(
        self,
        start: Callable[[], Iterator[Any]],
        skipped: SkippedAudio | None = None,
        length: int | None = None,
        earlier: int = 0,
    ) -> None:
        self._start, self._skipped, self._length = start, skipped, length
        self.handed_out, self._empty = earlier, False  # empty: a batch of this pass of which nothing was left
        self._begin_pass()

    def __iter__(self) -> Iterator[AudioNoiseBatch]:
        return self

    def __next__(self) -> AudioNoiseBatch:
        """The next batch, from another pass over the data where the epoch lacks batches.

        Raises:
            UserError: what a worker raised; or a pass over all the data gave nothing.
        """
        if self.handed_out == self._length:
            self._batches = iter(())  # ends the workers of a pass that is cut short
        while True:
            try:
                got: AudioNoiseBatch | PartialBatch | LoadFailure = next(self._batches)
            except StopIteration:
                if self._skipped is not None and self._empty and self.handed_out == self._earlier:
                    fix = "Check the paths and the files; bad_audio=skip needs some that can be used."
                    raise UserError("none of the audio can be used", self._skipped.first(), fix) from None
                if self._length is None or self.handed_out >= self._length:
                    raise
                self._begin_pass()
                continue
            if isinstance(got, LoadFailure):
                self._batches = iter(())  # ends the workers; left to the garbage collector it may take them 5 s each
                raise got.error
            if isinstance(got, PartialBatch):
                assert self._skipped is not None
                self._skipped.add(got.failures)
                got = got.batch
            if got is not None:
                self.handed_out += 1
                return got
            self._empty = True

    def state(self) -> dict[str, Any]:
        """What the pass's draws follow from, `generator`: torch's, uint8 [bytes], before it began; the batches handed
        out in the epoch, and in its earlier passes."""
        return {"generator": self._generator, "batches": self.handed_out, "earlier": self._earlier}

    def pass_over(self, count: int, decode: bool = False) -> None:
        """Leave out `count` batches. Workers decode them, since their generators move with every utterance; the main
        process need not, since its own are restored, unless `decode` says so, for what comes as a stream. Where bad
        audio is skipped, only decoding shows which are empty.
        """
        indices = None if decode or self._skipped is not None else indices_of(self._batches)
        for _ in range(count):
            if indices is None:
                next(self)
            else:
                next(indices)
                self.handed_out += 1

    def _begin_pass(self) -> None:
        self._earlier, self._generator = self.handed_out, torch.get_rng_state()
        self._batches = self._start()
        self._empty = False
