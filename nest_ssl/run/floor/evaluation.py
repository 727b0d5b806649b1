"""How far rounding alone moves what a validation makes of its first batch before any weight, such as features.

How far that is depends on the audio (telephone speech, silence and tones come further apart than other speech does), so
that the steps do not show it. Once the validation is over, these parts are called again with what they were given one
ulp away. What they read and change is then what it was: training goes on with the same bits.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from nest_ssl.base.nested import tensors, to_builtins
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.compare.metrics import typical_row
from nest_ssl.record.observers.copies import copy_to_cpu
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import FloorEntry
from nest_ssl.run.floor.deviations import Tally
from nest_ssl.run.floor.state import copied, move_by_one_ulp, plain_numbers, tensors_of, write_weights


@dataclass
class _Given:
    """What a part without weights was called with; a copy."""

    address: Address
    module: nn.Module
    values: tuple[tuple[Any, ...], dict[str, Any]]


class EvaluationFloor:
    """Repeats the calls of a validation's first batches that come before any part that has weights.

    Args:
        repeats, held_out: how many make the floor, and how many more check it.
    """

    def __init__(self, repeats: int, held_out: int) -> None:
        self._repeats, self._held_out = repeats, held_out
        self._batches: list[list[_Given]] = []  # a list of calls for each loader's first
        self._hooks: list[RemovableHandle] = []
        self._entries: dict[Address, FloorEntry] = {}

    def attach(self, model: nn.Module) -> None:
        """Until `detach`, keep what the parts are called with; the first of them that has weights ends that."""
        found: list[_Given] = []
        counts = Counter[str]()
        self._batches.append(found)

        def given(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if next(module.parameters(), None) is not None:
                self.detach()
                return
            found.append(_Given(Address(Kind.OUTPUT, name, counts[name]), module, _copy((args, kwargs))))
            counts[name] += 1

        for name, module in model.named_children():
            self._hooks.append(module.register_forward_pre_hook(partial(given, name), with_kwargs=True))

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def measure(self, trainer: Trainer, model: nn.Module) -> list[FloorEntry]:
        """Call again what was kept since it was last measured; the floors of all validations so far, the largest."""
        self.detach()
        batches, self._batches = self._batches, []
        with torch.inference_mode(False), torch.no_grad(), trainer.precision_plugin.forward_context():
            for calls in batches:
                for entry in self._measure(model, calls):
                    known = self._entries.get(entry.place.address)
                    if known is None or known.relative_largest < entry.relative_largest:
                        self._entries[entry.place.address] = entry
        return list(self._entries.values())

    def _measure(self, model: nn.Module, calls: list[_Given]) -> list[FloorEntry]:
        numbers, random, buffers = plain_numbers(model), generator_states(), copied(dict(model.named_buffers()))
        tally, first, rows = Tally(), list[tuple[Address, Tensor]](), dict[Address, float]()
        try:
            for number in range(1 + self._repeats + self._held_out):
                generator = torch.Generator().manual_seed(number)
                made: list[tuple[Address, Tensor]] = []
                for call in calls:
                    args, kwargs = _copy(call.values)
                    if number:
                        move_by_one_ulp([*tensors_of([args, kwargs]), *call.module.buffers()], generator)
                    output = to_builtins(call.module.eval()(*args, **kwargs), copy_to_cpu)
                    made += [(call.address.at(path), tensor) for path, tensor in tensors(output)]
                    write_weights(model, buffers)
                first = first or made
                tally.add(first, made, number > self._repeats)
                for (address, one), (_, other) in zip(first, made, strict=True) if number <= self._repeats else ():
                    apart = typical_row(one, other) if one.shape == other.shape else math.inf
                    rows[address] = max(rows.get(address, 0.0), apart)
                restore_generators(random)
        finally:
            write_weights(model, buffers)
            restore_generators(random)
            for module, own in numbers:
                vars(module).update(own)
        return [entry.model_copy(update={"row": rows[entry.place.address]}) for entry in tally.entries()]


def _copy(values: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), values)
