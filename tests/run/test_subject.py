"""Which spectra are cut off: by Python's generator in either trainer, so that it is seeded and restored."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

from nest_ssl.run.subject import draw_from_python


def test_draws_are_pythons_and_are_restored_with_it() -> None:
    own = random.Random(1)
    model: Any = SimpleNamespace(preprocessor=SimpleNamespace(featurizer=SimpleNamespace(_rng=own)))
    draw_from_python(model)
    generator = copy.deepcopy(model).preprocessor.featurizer._rng
    random.seed(7)
    expected, state = random.Random(7).random(), random.getstate()
    assert generator.random() == expected
    after = generator.random()
    random.setstate(state)
    assert [generator.random(), generator.random()] == [expected, after]
