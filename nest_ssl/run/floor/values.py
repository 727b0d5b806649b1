"""Every tensor of a step that a comparison looks at, by its address: as it was recorded, and as a repeat left it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Size, Tensor, dtype

from nest_ssl.base.nested import tensors
from nest_ssl.base.safe_load import load_tensors
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.calls import Call


class Update(NamedTuple):
    """What a step did to a weight. In float64 it would be twice as large as that, and is worked out piece by piece."""

    after: Tensor
    before: Tensor

    @property
    def shape(self) -> Size:
        return self.after.shape

    @property
    def dtype(self) -> dtype:
        return self.after.dtype


@dataclass
class StepValues:
    """What a step computed and left; on the CPU.

    Args:
        calls: of every module.
        outputs: of the model, by name.
        loss: that backward starts from.
        gradients: of parameters, neither clipped nor used.
        applied: the same as the optimizer used them.
        before, after: parameters and buffers; all that stand in `gradients` are trained parameters.
        optimizer: its state, by parameter name.
        buffers: names of those in `after` that are buffers.
    """

    calls: Sequence[Call]
    outputs: Mapping[str, Any]
    loss: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]
    applied: Mapping[str, Tensor | None]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    buffers: Collection[str]

    def __iter__(self) -> Iterator[tuple[Address, Tensor | Update]]:
        """In causal order."""
        for call in self.calls:
            for name, value in call.inputs.items():
                yield from _leaves(Address(Kind.INPUT, call.module, call.call, name), value)
            yield from _leaves(Address(Kind.OUTPUT, call.module, call.call), call.output)
        for name, value in self.outputs.items():
            yield from _leaves(Address(Kind.MODEL_OUTPUT, slot=name), value)
        for name, value in self.loss.items():
            yield from _leaves(Address(Kind.LOSS, slot=name), value)
        for call in self.calls:
            yield from _leaves(Address(Kind.OUTPUT_GRADIENT, call.module, call.call), call.output_grads)
        for kind, table in ((Kind.GRADIENT, self.gradients), (Kind.APPLIED_GRADIENT, self.applied)):
            for name, gradient in table.items():
                yield from _leaves(of_entry(kind, name), gradient)
        for name, value in self.optimizer.items():
            yield from _leaves(of_entry(Kind.OPTIMIZER_STATE, name), value)
        for name, value in self.after.items():
            yield of_entry(Kind.BUFFER if name in self.buffers else Kind.PARAMETER, name), value
            if name in self.gradients:
                yield of_entry(Kind.UPDATE, name), Update(value, self.before[name])


def recorded_values(
    folder: Path, applied: Mapping[str, Tensor | None], before: Mapping[str, Tensor], buffers: Collection[str]
) -> StepValues:
    """What the recorder wrote of a step, mapped from the disk.

    Args:
        folder: of the step.
        applied: gradients as the optimizer used them, where they are others than the recorded ones.
        before: parameters and buffers at the start of the step.
        buffers: names of buffers.

    Raises:
        UserError: a file is not there.
    """
    names = (layout.CALLS, layout.FORWARD_OUTPUT, layout.LOSS, layout.GRADIENTS, layout.WEIGHTS, layout.OPTIMIZER)
    calls, outputs, loss, gradients, after, optimizer = (load_tensors(folder / name, mapped=True) for name in names)
    rows, applied = [Call(**row) for row in calls["calls"]], {**gradients, **applied}
    return StepValues(rows, outputs, loss, gradients, applied, before, after, optimizer["state"], buffers)


def _leaves(address: Address, value: Any) -> Iterator[tuple[Address, Tensor]]:
    return ((address.at(path), tensor) for path, tensor in tensors(value))
