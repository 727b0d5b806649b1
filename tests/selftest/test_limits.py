"""The smallest size at which a fault is caught is found in few trials, and found again from what is kept."""

from __future__ import annotations

import pytest

from nest_ssl.selftest.cases import read_catalogue
from nest_ssl.selftest.runs import SMALLEST, next_decade, sizes_of


@pytest.mark.parametrize("limit", range(8))
def test_it_is_found_in_few_trials(limit: int) -> None:
    caught, trials = {0: True}, 0
    while (decade := next_decade(caught, 8)) is not None:
        assert decade not in caught
        caught[decade] = decade <= limit
        trials += 1
    assert max(at for at, is_so in caught.items() if is_so) == limit
    assert trials <= 2 + limit // 2 and (limit == 7 or caught[limit + 1] is False)


def test_what_is_not_caught_at_its_own_size_has_no_limit() -> None:
    assert next_decade({0: False}, 8) is None and next_decade({0: True}, 1) is None


def test_sizes_are_powers_of_ten_below_its_own() -> None:
    cases = {case.name: case for case in read_catalogue()}
    sizes = sizes_of(cases["attention's scale"])
    assert sizes[:3] == [1e-6, 1e-7, 1e-8] and SMALLEST <= sizes[-1] < 10 * SMALLEST * 1.01
    assert sizes_of(cases["padded keys visible"]) == []
