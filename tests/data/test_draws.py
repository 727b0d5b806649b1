"""Where the augmentation's numbers come from, and that both sources draw what the words say."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nest_ssl.data.draws import DRAWS, Draws

each = pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)


@each
@given(seed=st.integers(0, 9999), low=st.integers(-5, 5), width=st.integers(1, 9))
def test_ranges(draws: Draws, seed: int, low: int, width: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    assert 0 <= draws.fraction() < 1
    assert low <= draws.uniform(low, low + width) <= low + width
    assert low <= draws.integer(low, low + width) < low + width
    among = list(range(low, low + width))
    assert draws.choice(among) in among
    some = draws.sample(among, width - 1)
    assert len(set(some)) == len(some) == width - 1 and set(some) <= set(among)
    pieces = draws.cut(50, width)
    assert sum(pieces) == 50 and len(pieces) <= width


@each
def test_every_value_of_a_range_comes_up(draws: Draws) -> None:
    random.seed(0)
    np.random.seed(0)
    assert {draws.integer(3, 6) for _ in range(99)} == {3, 4, 5}


@pytest.mark.parametrize("name", DRAWS)
def test_each_draws_from_its_own_generator_only(name: str) -> None:
    def draw() -> list[object]:
        draws = DRAWS[name]
        return [draws.fraction(), draws.uniform(0, 1), draws.integer(0, 99), draws.choice(range(99)),
                draws.sample(range(99), 5), draws.cut(99, 3)]  # fmt: skip

    drawn = []
    for python_seed, numpy_seed in ((1, 1), (1, 2), (2, 1)):
        random.seed(python_seed)
        np.random.seed(numpy_seed)
        drawn.append(draw())
    assert (drawn[0] == drawn[1], drawn[0] == drawn[2]) == ((True, False) if name == "python" else (False, True))


def test_an_empty_piece_is_left_out_or_kept() -> None:
    random.seed(0)
    np.random.seed(0)
    assert 0 not in DRAWS["python"].cut(2, 5)
    assert len(DRAWS["numpy"].cut(2, 5)) == 5


@given(seed=st.integers(0, 9999), before=st.integers(0, 700), length=st.integers(0, 2000), parts=st.integers(1, 5))
def test_pieces_are_cut_as_by_as_many_choices(seed: int, before: int, length: int, parts: int) -> None:
    """Of Python's generator, wherever in its 624 words it stands; the one of NumPy stays as it is."""
    random.seed(seed)
    random.gauss(0, 1)  # keeps a second number
    [random.getrandbits(32) for _ in range(before)]
    start, of_numpy = random.getstate(), np.random.get_state()[2]
    expected = list(Counter(random.choices(range(parts), k=length)).values())
    after = random.getstate()
    random.setstate(start)
    assert DRAWS["python"].cut(length, parts) == expected and random.getstate() == after
    assert np.random.get_state()[2] == of_numpy


def test_nobody_to_choose_from() -> None:
    assert all(draws.sample([], 0) == [] for draws in DRAWS.values())
