"""Draws of torch's CPU generator, MT19937, a block of 624 words at a time in vector registers.

Source: Matsumoto and Nishimura, "Mersenne Twister" (1998), section 2.1 and table II, for the recurrence and the
tempering. A number of `Tensor.bernoulli_` takes two words: the low 21 bits of the first and all of the second are a
fraction of 53 bits that is compared with the probability.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numba import boolean, int64, uint8, uint32, uint64, void
from numpy.typing import NDArray

from nest_ssl.kernels.jit import jit

Words: TypeAlias = NDArray[np.uint32]
Bytes: TypeAlias = NDArray[np.uint8]

WORDS = 624
AHEAD = 397  # the word, beside the next, of which a new one is made
FRACTION = 53  # bits

UPPER, LOWER, TWIST = np.uint32(0x80000000), np.uint32(0x7FFFFFFF), np.uint32(0x9908B0DF)
HIGH_BITS = np.uint32(0x1FFFFF)
ZERO, ONE = np.uint32(0), np.uint32(1)


@jit(void(uint32[::1]))
def next_block(words: Words) -> None:
    """The next 624 words of the recurrence, in place."""
    for i in range(WORDS - AHEAD):
        mixed = (words[i] & UPPER) | (words[i + 1] & LOWER)
        words[i] = words[i + AHEAD] ^ (mixed >> ONE) ^ ((ZERO - (words[i + 1] & ONE)) & TWIST)
    for i in range(WORDS - AHEAD, WORDS - 1):
        mixed = (words[i] & UPPER) | (words[i + 1] & LOWER)
        words[i] = words[i + AHEAD - WORDS] ^ (mixed >> ONE) ^ ((ZERO - (words[i + 1] & ONE)) & TWIST)
    mixed = (words[WORDS - 1] & UPPER) | (words[0] & LOWER)
    words[WORDS - 1] = words[AHEAD - 1] ^ (mixed >> ONE) ^ ((ZERO - (words[0] & ONE)) & TWIST)


@jit(uint32(uint32))
def tempered(word: np.uint32) -> np.uint32:
    word ^= word >> np.uint32(11)
    word ^= (word << np.uint32(7)) & np.uint32(0x9D2C5680)
    word ^= (word << np.uint32(15)) & np.uint32(0xEFC60000)
    word ^= word >> np.uint32(18)
    return word


@jit(boolean(uint32[::1], uint8[::1], uint32))
def compare_high_words(words: Words, out: Bytes, high: np.uint32) -> bool:
    """Into `out` 1 where a pair's first word is below `high`, else 0.

    Returns:
        Whether one of them is `high`, so that its second word decides.
    """
    tied = ZERO
    for i in range(len(out)):
        word = tempered(words[2 * i]) & HIGH_BITS
        out[i] = word < high
        tied |= np.uint32(word == high)
    return bool(tied != ZERO)


@jit(int64(uint32[::1], int64, uint8[::1], uint64))
def draw_below(words: Words, used: int, out: Bytes, threshold: np.uint64) -> int:
    """Fill `out` with 1 where a fraction of 53 bits is below `threshold`, in the generator's order, else with 0.

    Args:
        words: the generator's 624, changed in place.
        used: how many of them were drawn.

    Returns:
        How many of the words are drawn now.
    """
    high, low = np.uint32(threshold >> np.uint64(32)), np.uint32(threshold & np.uint64(0xFFFFFFFF))
    done = 0
    while done < len(out):
        if used == WORDS:
            next_block(words)
            used = 0
        pairs = min((WORDS - used) // 2, len(out) - done)
        if pairs == 0:  # one word is left: the pair's other is the next block's first
            first = tempered(words[used]) & HIGH_BITS
            next_block(words)
            out[done] = first < high or (first == high and tempered(words[0]) < low)
            used, done = 1, done + 1
            continue
        block, out_of_block = words[used : used + 2 * pairs], out[done : done + pairs]
        if compare_high_words(block, out_of_block, high):
            for i in range(pairs):
                if tempered(block[2 * i]) & HIGH_BITS == high:
                    out_of_block[i] = tempered(block[2 * i + 1]) < low
        used, done = used + 2 * pairs, done + pairs
    return used
