"""Watches the first batch that each loader gives to a validation: what the model and its direct parts return."""

from __future__ import annotations

from typing import Any

from torch import nn

from nest_ssl.base.nested import to_builtins
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.copies import copy_to_cpu


class ValidationObserver:
    """Collects the `batches` of one validation, as `recording.contents.ValidationBatch` has them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._batches: dict[int, dict[str, Any]] = {}  # by loader
        self._calls: CallObserver | None = None
        self._loader = 0

    def batch(self, batch: Any, loader: int) -> None:
        """A loader gives a batch; the one before is over."""
        self._end_batch()
        if loader not in self._batches:
            self._batches[loader] = {"loader": loader, "fields": to_builtins(batch, copy_to_cpu), "outputs": []}
            self._loader = loader
            children = [name for name, _ in self._model.named_children()]
            self._calls = CallObserver(self._model, modules=children).attach()

    def done(self) -> list[dict[str, Any]]:
        """Validation is over; no hook stays."""
        self._end_batch()
        return list(self._batches.values())

    def _end_batch(self) -> None:
        if self._calls:
            ended = sorted((call for call in self._calls.detach() if not call.raised), key=lambda call: call.end)
            outputs = [{"module": call.module, "call": call.call, "output": call.output} for call in ended]
            self._batches[self._loader]["outputs"] = outputs
        self._calls = None
