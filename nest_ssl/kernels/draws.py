"""`Tensor.bernoulli_` into booleans, in a seventh of the time where torch draws one by one."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from nest_ssl.kernels.available import MERSENNE_TWISTER, loops, may_compute

FEWEST = 1 << 14  # draws: for fewer torch is as fast, for the generator's state is copied out and back


def bernoulli(like: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """`torch.empty_like(like, dtype=torch.bool).bernoulli_(probability)`: the same draws, which leave the generator as
    torch leaves it. One number for each element, in memory's order.

    No other thread may draw with the generator meanwhile: its state is read and put back without torch's lock.

    Args:
        like: of any shape and layout.
        probability: of true, from 0 to 1.
        generator: the process's own if it is None.
    """
    drawn = torch.empty_like(like, dtype=torch.bool)
    if drawn.numel() >= FEWEST and 0 < probability < 1 and may_compute(drawn) and generator_is_known():
        _draw(drawn, probability, generator or torch.default_generator)
        return drawn
    return drawn.bernoulli_(probability, generator=generator)


def _draw(drawn: Tensor, probability: float, generator: torch.Generator) -> None:
    """Fill dense booleans, in the order in which they lie."""
    twister = loops(MERSENNE_TWISTER)
    assert twister is not None
    state = _State(generator)
    out = drawn.as_strided((drawn.numel(),), (1,)).view(torch.uint8).numpy()
    threshold = math.ceil(probability * 2**twister.FRACTION)
    state.used = twister.draw_below(state.words, state.used, out, np.uint64(threshold))
    state.put_back()


class _State:
    """The state of torch's CPU generator as its bytes have it: the words, and how many of them were drawn.

    Source: torch `ATen/CPUGeneratorImpl.cpp`, `CPUGeneratorImplStateLegacy`: after the seed, words that are left (one
    more than there are), a flag, the next one's place, and 624 words of 64 bits each.
    """

    LEFT, NEXT, WORDS = slice(8, 12), slice(16, 24), slice(24, 24 + 8 * 624)

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.state = generator, generator.get_state()
        self.bytes = self.state.numpy()
        self.words = self.bytes[self.WORDS].view(np.uint64).astype(np.uint32)
        left = int(self.bytes[self.LEFT].view(np.int32)[0])
        self.used = len(self.words) + 1 - left

    def put_back(self) -> None:
        """Have the generator go on behind the words that were drawn."""
        self.bytes[self.LEFT].view(np.int32)[0] = len(self.words) + 1 - self.used
        self.bytes[self.NEXT].view(np.uint64)[0] = self.used
        self.bytes[self.WORDS].view(np.uint64)[:] = self.words
        self.generator.set_state(self.state)


@cache
def generator_is_known() -> bool:
    """Whether the loops give torch's draws here, tried once a process with a generator of its own.

    They do not where torch draws with MKL, as it does on Intel's processors.
    """
    if loops(MERSENNE_TWISTER) is None:
        return False
    own, torchs = (torch.Generator().manual_seed(19937) for _ in range(2))
    if own.get_state().numel() < _State.WORDS.stop:
        return False
    for draws, probability in ((1, 0.5), (FEWEST, 0.9), (311, 1e-3), (1250, 1 / 3)):
        drawn, expected = torch.empty(2, draws, dtype=torch.bool, device="cpu")
        _draw(drawn, probability, own)
        expected.bernoulli_(probability, generator=torchs)
        if not torch.equal(drawn, expected) or not torch.equal(own.get_state(), torchs.get_state()):
            return False
        for each in (own, torchs):
            torch.rand(1, generator=each, device="cpu")  # one word, so that a pair of them stretches over two blocks
    return True
