"""Which spectra are cut off, and some masks: by Python's generator in either trainer, seeded and restored."""

from __future__ import annotations

import copy
import random
from typing import Any

from torch import nn

from nest_ssl.run.subject import draw_from_python


def test_draws_are_pythons_and_are_restored_with_it() -> None:
    part: Any = nn.Module()
    part._rng = random.Random(1)
    model: Any = nn.ModuleDict({"featurizer": part, "other": nn.ReLU()})
    draw_from_python(model)
    generator = copy.deepcopy(model)["featurizer"]._rng
    for draw in (lambda source: source.random(), lambda source: source.randint(3, 900)):
        random.seed(7)
        expected, state = draw(random.Random(7)), random.getstate()
        assert draw(generator) == expected
        after = draw(generator)
        random.setstate(state)
        assert [draw(generator), draw(generator)] == [expected, after]
