"""Dropout on a CPU as `F.dropout` computes it, its draws by a compiled loop; of many elements it is kept as booleans: a
quarter of the memory, and a fifth of the time."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nest_ssl.kernels.available import ELEMENTWISE, loops, may_compute
from nest_ssl.kernels.draws import bernoulli

CHUNK = 1 << 17  # elements dropped out at a time: caches hold them and the factors made for them
TORCHS = nn.Dropout.forward  # which somebody may change in its class, and mean every dropout
BYTES = torch.uint8  # as which booleans are read: torch takes seven times as long to read them as they are
FEW = 1 << 18  # elements: up to as many a backward in Python costs more than what booleans spare
MOST_THREADS = 4  # a loop takes a fifth of the time that torch's operators take with one


class Dropout(nn.Dropout):
    """torch's own: the same draws, output and gradient."""

    def forward(self, input: Tensor) -> Tensor:
        """`input` of any shape, dropped out in training."""
        plain = nn.Dropout.forward is TORCHS and not self.inplace and input.is_floating_point()
        if self.training and 0 < self.p < 1 and plain and may_compute(input):
            if input.numel() <= FEW:
                return input * bernoulli(input, 1 - self.p).view(BYTES).to(input.dtype).div_(1 - self.p)
            dropped: Tensor = _Dropout.apply(input, self.p)  # type: ignore[no-untyped-call]
            return dropped
        return super().forward(input)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        kept = bernoulli(x, 1 - rate)
        ctx.save_for_backward(kept)
        ctx.rate = rate
        return drop(x, kept, rate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient that is differentiated again
            return grad * factor_of(ctx.rate, grad.dtype).mul(kept), None
        return drop(grad, kept, ctx.rate), None


def drop(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """`x` times what dropout multiplies it by, in its own layout. Args as of `drop_`, but in any layout."""
    if kept is None:
        return x.clone()
    if x.stride() != kept.stride():  # a gradient may lie in memory as it likes
        return x * factor_of(rate, x.dtype).to(x.device).mul(kept)
    # As torch lays out products: a dimension of one frame may have any stride in `x`, and has its own in them.
    dropped = unfilled(x, *x.shape) if x.is_contiguous() else torch.empty_like(x)
    flat, flat_x, flat_kept = (each.as_strided((each.numel(),), (1,)) for each in (dropped, x, kept))
    if (compiled := loops_for(x)) is not None:
        compiled.scale_kept(
            flat.numpy(), flat_x.detach().numpy(), flat_kept.view(BYTES).numpy(), factor_of(rate, x.dtype).item()
        )
    else:
        _multiply_(flat.copy_(flat_x), flat_kept, rate)
    return dropped


def drop_(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """Multiply a contiguous `x` in place by what dropout multiplies it by: 0, or 1 / (1 - rate) as `F.dropout` rounds
    it. They are products there too, so that zeros have their signs.

    Args:
        kept: contiguous booleans, of x's shape; nothing is dropped if it is None.
        rate: of dropout, below 1.
    """
    if kept is None:
        return x
    if (compiled := loops_for(x)) is not None:
        compiled.scale_kept_(x.view(-1).numpy(), kept.view(-1).view(BYTES).numpy(), factor_of(rate, x.dtype).item())
    else:
        _multiply_(x.view(-1), kept.view(-1), rate)
    return x


def loops_for(x: Tensor, name: str = ELEMENTWISE) -> ModuleType | None:
    """Compiled ones, which have one thread: torch's operators are quicker with more than five."""
    plain = x.dtype is torch.float32 and may_compute(x) and torch.get_num_threads() <= MOST_THREADS
    return loops(name) if plain else None


def _multiply_(x: Tensor, kept: Tensor, rate: float) -> None:
    """With torch's operators; both are of one dimension."""
    factors = x.new_empty(min(CHUNK, x.numel()))
    for part, part_kept in zip(torch.split(x, CHUNK), torch.split(kept.view(BYTES), CHUNK), strict=True):
        part.mul_(factors[: len(part)].copy_(part_kept).mul_(factor_of(rate, x.dtype)))


def unfilled(like: Tensor, *shape: int) -> Tensor:
    """New memory of its type for what writes all of it: torch's own is filled first, with NaN, where kernels have to
    be deterministic."""
    storage: Any = torch.UntypedStorage(math.prod(shape) * like.element_size(), device="cpu")  # type: ignore[no-untyped-call]
    new: Any = torch.empty(0, dtype=like.dtype, device="cpu")
    made: Tensor = new.set_(storage, 0, shape)
    return made


def factor_of(rate: float, dtype: torch.dtype) -> Tensor:
    """What is kept is multiplied by it: a number, rounded as `F.dropout` rounds it."""
    return torch.ones((), dtype=dtype, device="cpu").div_(1 - rate)
