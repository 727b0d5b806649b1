"""The states of every random generator, their digests, and how many numbers lie between two of them.

Two trainers that drew the same numbers have the same digests; the first boundary at which they differ says in which
part of the step one of them drew something else. A recording's ledger says it call by call.

Python, NumPy and torch's CPU generator are all Mersenne Twisters (MT19937): 624 words of 32 bits and a position. The
words consumed between two states are counted by stepping a copy of the first until it is the second. CUDA's generator
(Philox) keeps an offset, which says it outright, in its own unit: numbers per thread, in fours.
"""

from __future__ import annotations

import ast
import hashlib
import random
import threading
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

BLOCK = 624  # words that a Mersenne Twister makes at a time
MOST = 1 << 26  # words after which counting gives up: seconds of drawing, or a generator that was seeded again

State = Any  # compared with ==; see `read_states`
Twister = tuple[bytes, int]  # 624 words as uint32, and how many of them are consumed


def read_states() -> dict[str, State]:
    """The raw state of Python's, NumPy's, torch's CPU and every CUDA generator; reading draws nothing."""
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    states: dict[str, State] = {
        "python": random.getstate(),
        "numpy": (str(name), keys.tobytes(), int(position), int(has_gauss), float(cached)),
        "torch_cpu": torch.get_rng_state().numpy().tobytes(),
    }
    for device in range(torch.cuda.device_count() if _cuda_in_use() else 0):
        states[f"torch_cuda_{device}"] = torch.cuda.get_rng_state(device).numpy().tobytes()
    return states


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def state_bytes(generator: str, state: State) -> bytes:
    """A state as bytes, all of it: two states are equal if these are."""
    if generator == "python":
        return repr(state).encode()
    if generator == "numpy":
        name, keys, *rest = state
        return b"|".join([name.encode(), keys, str(tuple(rest)).encode()])
    return bytes(state)


def set_state(generator: str, data: bytes) -> None:
    """Put one generator into a state that `state_bytes` gave; the numbers then drawn are the same bits.

    Raises:
        ValueError: these bytes are no state of it, or there is no such generator here.
    """
    if generator == "python":
        random.setstate(ast.literal_eval(data.decode()))
    elif generator == "numpy":
        name, _, rest = data.partition(b"|")
        words = np.frombuffer(rest[: 4 * BLOCK], np.uint32)
        np.random.set_state((name.decode(), words, *ast.literal_eval(rest[4 * BLOCK + 1 :].decode())))
    elif generator == "torch_cpu":
        torch.set_rng_state(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    elif generator.startswith("torch_cuda_") and int(generator.rpartition("_")[2]) < torch.cuda.device_count():
        device = int(generator.rpartition("_")[2])
        torch.cuda.set_rng_state(torch.frombuffer(bytearray(data), dtype=torch.uint8), device)
    else:
        raise ValueError(f"no generator {generator!r} here")


def digest(generator: str, state: State) -> str:
    """16 hex digits of the SHA-256 of `state_bytes`."""
    return hashlib.sha256(state_bytes(generator, state)).hexdigest()[:16]


def rng_digests() -> dict[str, str]:
    """State digests of every generator."""
    return {generator: digest(generator, state) for generator, state in read_states().items()}


def generator_states() -> dict[str, Any]:
    """The state of every generator as builtins and tensors, as checkpoints keep it (a weights-only load reads them).

    Keys `python`, `numpy`, `torch_cpu` and, where CUDA is in use, `torch_cuda` (one state a device).
    """
    states = read_states()
    name, keys, *rest = states["numpy"]
    words = torch.from_numpy(np.frombuffer(keys, np.uint32).astype(np.int64))
    kept = {"python": states["python"], "numpy": [name, words, *rest], "torch_cpu": torch.get_rng_state()}
    if _cuda_in_use():
        kept["torch_cuda"] = torch.cuda.get_rng_state_all()
    return kept


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put every generator back into a state from `generator_states`; the numbers then drawn are the same bits."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch_cpu"])
    if "torch_cuda" in states and _cuda_in_use():
        for device, state in enumerate(states["torch_cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def words_between(generator: str, before: State, after: State) -> int | None:
    """How many 32-bit words `generator` gave between two of its states; on CUDA, how far its offset moved.

    None if it was seeded again in between, went backwards, or gave more than `MOST`. A normal number kept for the next
    call is part of the state and no word: taking it counts 0.
    """
    if generator.startswith("torch_cuda"):  # a seed and an offset, 8 bytes each
        (seed, offset), (new_seed, new_offset) = (np.frombuffer(state[:16], np.int64) for state in (before, after))
        return int(new_offset - offset) if seed == new_seed and new_offset >= offset else None
    if generator == "torch_cpu" and before[:8] != after[:8]:
        return None  # another initial seed
    (old_words, old_position), (words, position) = _twister(generator, before), _twister(generator, after)
    moved = position - old_position
    if old_words == words:
        return moved if moved >= 0 else None
    wanted = _at(_WALKERS.target, words, 0).random_raw(BLOCK)
    walker, walked = _at(_WALKERS.walker, old_words, BLOCK), 0
    while walked < MOST // BLOCK:
        rows = min(walked + 4, 64)  # small steps first: most stages draw little
        blocks = walker.random_raw(rows * BLOCK).reshape(rows, BLOCK)
        for row in np.flatnonzero(blocks[:, 0] == wanted[0]):
            if np.array_equal(blocks[row], wanted):
                return int(walked + row + 1) * BLOCK + moved
        walked += rows
    return None


def _twister(generator: str, state: State) -> Twister:
    if generator == "python":
        *keys, position = state[1]
        return np.asarray(keys, dtype=np.uint32).tobytes(), position
    if generator == "numpy":
        return state[1], state[2]
    # torch: a seed (8 bytes), the words left of a block (4), a flag (4), the position (8), 624 words (8 each).
    left, position = int(np.frombuffer(state, np.int32, 1, 8)[0]), int(np.frombuffer(state, np.int64, 1, 16)[0])
    keys = np.frombuffer(state, np.uint64, BLOCK, 24).astype(np.uint32)
    return keys.tobytes(), BLOCK if left == 1 else position  # one left: used up, the next draw makes a new block first


class _Walkers(threading.local):
    """NumPy's bit generators make the same words as the other two; making one takes longer than most counts do."""

    def __init__(self) -> None:
        self.walker, self.target = np.random.MT19937(0), np.random.MT19937(0)


_WALKERS = _Walkers()


def _at(generator: np.random.MT19937, keys: bytes, position: int) -> np.random.MT19937:
    """The generator, put into the given state."""
    state: Any = {"key": np.frombuffer(keys, np.uint32), "pos": position}
    generator.state = {"bit_generator": "MT19937", "state": state}
    return generator
