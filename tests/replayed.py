"""A stand-in for CUDA graphs on a CPU, with what a caller can see of them: capturing runs a module some times, and
inputs and results lie in memory that the next replay writes over.

    python tests/replayed.py key=value ...    # scripts/train_nest.py with it
    nest-ssl gpu --device cpu --quick --nest-script tests/replayed.py
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nest_ssl.model.encoder import graphs

RUNS = 4  # three to warm up, and the one that is captured


class Graph:
    """What it makes of a module, as `torch.cuda.make_graphed_callables`."""

    def __init__(self, module: nn.Module, sample: tuple[Tensor, ...], pool: Any) -> None:
        graph: Any = torch.cuda.graph  # with which torch captures
        assert graph.keywords == {"capture_error_mode": "thread_local"} and pool is not None
        assert not torch.is_autocast_enabled("cpu")  # else backward would be captured in it
        self.module, self.sample = module, sample
        self.surface = (*sample, *module.parameters())
        inputs = [each for each in self.surface if each.requires_grad]
        for _ in range(RUNS):
            self.open = module(*sample)
            found = torch.autograd.grad(self.open[0], inputs, torch.empty_like(self.open[0]))
        self.outputs, self.grad = [each.detach().clone() for each in self.open], torch.empty_like(self.open[0])
        self.grads = [each.clone() for each in found]

    def __call__(self, *given: Tensor) -> Any:
        return Replay.apply(self, *given, *self.surface[len(given) :])  # type: ignore[no-untyped-call]

    def forward(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for mine, value in zip(self.sample, given, strict=False):
            mine.copy_(value)
        for mine in self.grads:
            mine.fill_(torch.nan)  # as memory that a forward uses for something else
        with torch.enable_grad():
            self.open = self.module(*self.sample)
        for mine, value in zip(self.outputs, self.open, strict=True):
            mine.copy_(value)
        return tuple(each.detach() for each in self.outputs)

    def backward(self, grad: Tensor) -> list[Tensor | None]:
        self.grad.copy_(grad)
        inputs = [each for each in self.surface if each.requires_grad]
        for mine, value in zip(self.grads, torch.autograd.grad(self.open[0], inputs, self.grad), strict=True):
            mine.copy_(value)
        left = iter(self.grads)
        return [next(left).detach() if each.requires_grad else None for each in self.surface]


class Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Graph, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.graph = graph
        return graph.forward(given)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return None, *ctx.graph.backward(grad)


def capture_on_cpu(put: Callable[[Any, str, Any], None] = setattr, graph: type[Graph] = Graph) -> None:
    """From now on encoders are captured on a CPU; `put` sets an attribute."""
    put(graphs, "DEVICE", "cpu")
    put(torch.cuda, "make_graphed_callables", graph)
    put(torch.cuda, "graph_pool_handle", lambda: (0, 1))


def main() -> None:
    """Train, see above."""
    capture_on_cpu()
    sys.argv[0] = str(Path(__file__).parents[1] / "scripts" / "train_nest.py")
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
elif __name__ == "<run_path>":  # by the bench's worker
    capture_on_cpu()
    NEST = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "train_nest.py"))["NEST"]
