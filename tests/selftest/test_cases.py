"""The catalogue: large enough, of all kinds, each case in order and its lines in the port as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.selftest.cases import Case, places, read_catalogue, select
from nest_ssl.selftest.planting import PACKAGE
from nest_ssl.selftest.score import Score, is_caught, is_placed, smallest
from nest_ssl.selftest.trial import RECIPES, Outcome, Place

CASES = read_catalogue()


def test_each_line_stands_in_the_port_exactly_once() -> None:
    """Else a fault would be planted elsewhere, or nowhere; found without a run."""
    counts = {
        (case.name, e.old): (PACKAGE / e.file).read_text("utf-8").count(e.old) for case in CASES for e in case.edits
    }
    assert {place: count for place, count in counts.items() if count != 1} == {}
    assert {case.recipe for case in CASES} <= RECIPES.keys()


def test_places_are_read() -> None:
    assert places(["both encoder.a", "optimizer", "initial weights quantizer", "forward root", "loss l.{0,1}.m"]) == {
        ("loss", "l.0.m"),
        ("loss", "l.1.m"),
        ("forward", "encoder.a"),
        ("backward", "encoder.a"),
        ("optimizer", None),
        ("initial weights", "quantizer"),
        ("forward", ""),
    }


def case(**given: object) -> Case:
    edit = {"file": "model/loss.py", "old": "a", "new": "b"}
    return Case.model_validate({"name": "x", "group": "features", "edits": [edit], "born": ["forward m"], **given})


def outcome(*born: Place, verdict: str = "diverged", error: str = "", exit_code: int = 1) -> Outcome:
    return Outcome(key="", name="x", size=None, verdict=verdict, born=born, error=error, exit_code=exit_code)


M, N = Place(phase="forward", module="m", size=1e-3, in_float64=1e-9), Place(phase="forward", module="n", size=1e-5)


def test_a_fault_is_caught_and_placed() -> None:
    fault = case(also=["forward n"])
    assert is_placed(fault, outcome(M)) and is_placed(fault, outcome(M, N))
    assert is_caught(fault, outcome(N)) and not is_placed(fault, outcome(N))
    assert is_caught(fault, outcome()) and not is_placed(fault, outcome())
    assert not is_caught(fault, outcome(M, verdict="equivalent")) and not is_caught(fault, outcome(M, error="raised"))
    assert not is_placed(case(), outcome(M, N)) and not is_caught(fault, outcome(M, exit_code=4))
    assert smallest([Score(fault, outcome(M, N))]) == 1e-5 and smallest([Score(fault, outcome(M, N))], True) == 1e-9
    assert smallest([Score(fault, outcome(N))]) is None


def test_all_modules_of_a_phase_may_be_named() -> None:
    """As where every gradient is added up otherwise; the place that must be named is asked for all the same."""
    fault = case(born=["forward m"], also=["backward *"])
    backward = Place(phase="backward", module="n")
    assert is_placed(fault, outcome(M, backward)) and not is_placed(fault, outcome(backward))
    assert not is_placed(fault, outcome(M, N))


def test_a_rewrite_is_spared() -> None:
    rewrite = case(group="rewrites", verdict="equivalent", born=[])
    same = case(group="refactorings", verdict="identical", born=[])
    assert is_caught(rewrite, outcome(verdict="equivalent")) and is_caught(rewrite, outcome(verdict="identical"))
    assert not is_caught(same, outcome(verdict="equivalent")) and not is_caught(rewrite, outcome())
    assert is_placed(rewrite, outcome(verdict="equivalent")) and not is_placed(
        rewrite, outcome(M, verdict="equivalent")
    )


def test_the_key_is_of_what_a_result_depends_on() -> None:
    sized = case(size=1e-3, edits=[{"file": "model/loss.py", "old": "a", "new": "SIZE"}])
    assert sized.key(None, "s") == sized.key(1e-3, "s") != sized.key(1e-4, "s")
    assert case().key(None, "s") == case(name="y", born=["backward m"]).key(None, "s")
    assert len({case().key(None, "s"), case().key(None, "t"), case(recipe="full").key(None, "s")}) == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- {name: a, file: f, old: o, new: n}", "born somewhere"),
        ("- {name: a, file: f, old: o, new: n, born: [loss], size: 1}", "a size needs SIZE"),
        ("- {name: a, file: f, old: o, new: SIZE, born: [loss]}", "a size needs SIZE"),
        ("- {name: a, file: f, old: o, new: n, born: [loss], sise: 1}", "sise"),
        ("[{name: a, file: f, old: o, new: n, born: [loss]}, {name: a, file: f, old: o, new: n, born: [loss]}]",
         "two cases of one name"),
    ],
)  # fmt: skip
def test_a_case_that_is_not_in_order_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "features.yaml").write_text(text)
    with pytest.raises(UserError, match=fault):
        read_catalogue(tmp_path)


def test_a_pair_is_made_of_its_faults(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text("- {name: a, file: f, old: o, new: n, born: [loss]}")
    (tmp_path / "loss.yaml").write_text("- {name: b, file: f, old: p, new: SIZE, born: [batch], size: 1.0e-3}")
    (tmp_path / "pairs.yaml").write_text("- faults: [a, b]")
    *_, pair = read_catalogue(tmp_path)
    assert (pair.name, pair.kinds, pair.born) == ("a + b", ("features", "loss"), ("loss", "batch"))
    assert [edit.new for edit in pair.edits] == ["n", "0.001"]
    assert [one.name for one in select([pair], "pai*, z")] == ["a + b"] and list(select([pair], "z")) == []
