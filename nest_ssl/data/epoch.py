"""One epoch of a loader: its batches handed out and counted, so that a resumed run can take it up where it was left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from nest_ssl.base.errors import UserError
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.data.skipping import LoadFailure, PartialBatch, SkippedAudio
from nest_ssl.data.torch_internals import indices_of


class Raising:
    """A DataLoader's own iterator, with a worker's `UserError` raised as it was."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[AudioNoiseBatch | PartialBatch]:
        return self

    def __next__(self) -> AudioNoiseBatch | PartialBatch:
        batch: AudioNoiseBatch | PartialBatch | LoadFailure = next(self.batches)
        if isinstance(batch, LoadFailure):
            self.batches = iter(())  # ends the workers now; left to the garbage collector it may take them 5 s each
            raise batch.error
        return batch


class Epoch:
    """The batches of one epoch, counted.

    Args:
        start: begins a pass over the data; called at once, for torch draws a base seed then.
        earlier: batches of the epoch that earlier passes handed out.
    """

    def __init__(self, start: Callable[[], Iterator[Any]], earlier: int = 0) -> None:
        self._start = start
        self.handed_out = earlier
        self._begin_pass()

    def __iter__(self) -> Iterator[AudioNoiseBatch]:
        return self

    def __next__(self) -> AudioNoiseBatch:
        batch: AudioNoiseBatch = next(self._batches)
        self.handed_out += 1
        return batch

    def state(self) -> dict[str, Any]:
        """What the pass's draws follow from, `generator`: torch's, uint8 [bytes], before it began; the batches handed
        out in the epoch, and in its earlier passes."""
        return {"generator": self._generator, "batches": self.handed_out, "earlier": self._earlier}

    def pass_over(self, count: int) -> None:
        """Leave out `count` batches. Workers decode them, since their generators move with every utterance; the main
        process need not, since its own are restored."""
        indices = indices_of(self._batches.batches) if isinstance(self._batches, Raising) else None
        for _ in range(count):
            if indices is None:
                next(self)
            else:
                next(indices)
                self.handed_out += 1

    def _begin_pass(self) -> None:
        self._earlier, self._generator = self.handed_out, torch.get_rng_state()
        self._batches = self._start()


class SkippingEpoch(Epoch):
    """An epoch without the utterances that cannot be used, see `skipping.py`.

    Args:
        start: see `Epoch`; its batches may be a `PartialBatch`.
        skipped: counts everything left out.
        length: batches that the epoch must have; None: as many as one pass gives.
        earlier: see `Epoch`.
    """

    def __init__(
        self, start: Callable[[], Iterator[Any]], skipped: SkippedAudio, length: int | None, earlier: int = 0
    ) -> None:
        self._skipped, self._length = skipped, length
        super().__init__(start, earlier)

    def __next__(self) -> AudioNoiseBatch:
        if self.handed_out == self._length:
            self._batches = iter(())  # ends the workers of a pass that is cut short
        while True:
            try:
                batch = self._without_failures(next(self._batches))
            except StopIteration:
                self._end_pass()
                continue
            if batch is not None:
                self.handed_out += 1
                return batch
            self._empty = True

    def pass_over(self, count: int) -> None:
        """Leave out `count` batches; which ones are empty shows only when they are decoded again."""
        for _ in range(count):
            next(self)

    def _begin_pass(self) -> None:
        super()._begin_pass()
        self._empty = False

    def _without_failures(self, got: AudioNoiseBatch | PartialBatch) -> AudioNoiseBatch | None:
        if not isinstance(got, PartialBatch):
            return got
        self._skipped.add(got.failures)
        return got.batch

    def _end_pass(self) -> None:
        """Begin another pass if the epoch lacks batches.

        Raises:
            StopIteration: it lacks none.
            UserError: a pass over all the data gave nothing.
        """
        if self._empty and self.handed_out == self._earlier:
            fix = "Check the paths and the files; bad_audio=skip needs some that can be used."
            raise UserError("none of the audio can be used", self._skipped.first(), fix)
        if self._length is None or self.handed_out >= self._length:
            raise StopIteration
        self._begin_pass()
