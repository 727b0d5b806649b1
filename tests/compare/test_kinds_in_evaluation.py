"""Which kind of fault a validation alone shows: another mode, or what the part is."""

from __future__ import annotations

from collections import Counter

import pytest

from nest_ssl.compare.born import Born
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Difference, Rung, Tally
from nest_ssl.compare.kinds import FaultKind
from nest_ssl.compare.kinds.likely import kinds_of
from nest_ssl.compare.metrics import Metrics
from nest_ssl.compare.rules.same_function import By
from nest_ssl.recording.clock import Phase
from tests.compare.test_kinds import CLASSES, K, born, kind_of, made
from tests.report.builder import finding, side


@pytest.mark.parametrize(
    ("module", "called", "difference", "kind"),
    [
        ("front", "front", Difference.VALUES, K.DROPOUT_AND_FLAGS),
        ("vq", "vq", Difference.VALUES, K.DROPOUT_AND_FLAGS),
        ("front", "front.inner", Difference.VALUES, K.FEATURES),  # what training makes there is not known
        ("front", "front", Difference.SHAPE, K.FEATURES),  # it may be of how long the audio is
        ("front", "front", Difference.MISSING_CANDIDATE, K.FEATURES),
        ("masker", "masker", Difference.VALUES, K.MASKING),  # which may have drawn otherwise
        ("body.blocks.0.att", "body", Difference.VALUES, K.DROPOUT_AND_FLAGS),
    ],
)
def test_what_a_part_makes_in_a_validation_alone(
    module: str, called: str, difference: Difference, kind: FaultKind
) -> None:
    """Of what steps make with the same bits another mode makes other ones, unless it draws."""
    metrics = Metrics(8, 8, relative=3e-6) if difference is Difference.VALUES else None
    one = finding("validation", 1, Phase.VALIDATION, 0, module=module, difference=difference, metrics=metrics)
    place = born("validation", module, one.address, step=1)

    def case(*births: Born) -> Comparison:
        found = made(*births, reference=side("a", "nemo", calls={0: [f"{called}#0"]}))
        found.rungs.append(Rung("validation", [Tally("validation", 1, 0, Counter({"calls": 3}), findings=[one])]))
        return found

    assert kind_of(case(place)) is kind
    inside = f"{module}.part" if module == "front" else module
    found = kinds_of(case(place, born("forward", inside, by=By.FLOAT64)), (CLASSES, CLASSES))
    assert [likely.born and likely.born.phase for likely in found] == ["forward"], "it is so in training, too"
