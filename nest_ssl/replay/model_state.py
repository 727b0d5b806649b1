"""The candidate's weights, modes and generators: put where the reference's stood, and back where they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.replay.frames import Interception


def load_weights(model: Interception, weights: dict[str, Tensor]) -> None:
    """Put copies of parameters and buffers in the place of those of the same names, of whatever shape they are."""
    for name, parameter in model.parameters().items():
        if name in weights and weights[name].shape == parameter.shape:
            parameter.data = weights[name].to(parameter.device, parameter.dtype, copy=True)
    for name, (owner, own) in model.buffers().items():
        buffer = owner._buffers[own]
        if name in weights and buffer is not None:
            owner._buffers[own] = weights[name].to(buffer.device, copy=True)


@contextmanager
def as_it_was(module: nn.Module, threads: int | None) -> Iterator[None]:
    """Run in so many threads; afterwards the model and the process are what they were before."""
    generators, own_threads = generator_states(), torch.get_num_threads()
    parameters = {parameter: parameter.data for parameter in module.parameters()}
    buffers = {part: dict(part._buffers) for part in module.modules()}
    modes = {part: part.training for part in module.modules()}
    with ExitStack() as undo:
        undo.callback(restore_generators, generators)
        undo.callback(torch.set_num_threads, own_threads)
        if threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            for parameter, data in parameters.items():
                parameter.data = data
            for part, own in buffers.items():
                part._buffers.clear()
                part._buffers.update(own)
                part.training = modes[part]
