"""Fingerprints in the place of copies: what a hook sees is hashed there and then, and nothing of it is kept."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from nest_ssl.record.observers.copies import Copies
from nest_ssl.recording.calls import Producer
from nest_ssl.recording.digests import Fingerprint, fingerprint


class Digests(Copies):
    """As `Copies`, but each tensor is its `Fingerprint`.

    A tensor that is seen again is not read again, unless torch says that it was edited: an edit through ``.data`` is
    not noticed until the tensor goes through an operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], int, Fingerprint]] = {}

    def copy(self, tensor: torch.Tensor) -> Any:
        seen = self._made.get(id(tensor))
        if seen is not None and seen[0]() is tensor and seen[1] == tensor._version:
            return seen[2]
        made = fingerprint(tensor)
        self._made[id(tensor)] = weakref.ref(tensor), tensor._version, made
        return made

    def returned(self, kept: Any, call: int) -> None:
        """Who made what is not noted."""

    def producers(self, kept: dict[str, Any]) -> dict[str, Producer]:
        return {}
