"""docs/detection.md and the sentence of every report: what was caught, what not, and by how small an error."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nest_ssl.report import detection
from nest_ssl.report.detection import Detection, comparer_hash, read_detection, write_detection
from nest_ssl.report.document import plain
from nest_ssl.report.render.markdown import render_markdown
from nest_ssl.report.sections import measured as section
from nest_ssl.selftest.cases import Case
from nest_ssl.selftest.page import page, summed
from nest_ssl.selftest.score import Score
from nest_ssl.selftest.trial import Outcome, Place
from tests.report.builder import comparison

EDIT = {"file": "model/loss.py", "old": "a", "new": "b"}


def score(name: str, group: str, verdict: str, *born: Place, kinds: tuple[str, ...] = (), error: str = "") -> Score:
    expected = {"born": ["both m"]} if group not in ("rewrites", "refactorings") else {"verdict": "equivalent"}
    case = Case.model_validate({"name": name, "group": group, "edits": [EDIT], **expected})
    outcome = Outcome(key="", name=name, size=None, verdict=verdict, born=born, kinds=kinds, error=error, seconds=6.0)
    return Score(case, outcome, 1e-6 if born else None)


M = [Place(phase=phase, module="m", size=2e-7, in_float64=3e-9) for phase in ("forward", "backward")]
SCORES = [
    score("good", "features", "diverged", *M, kinds=("features",)),
    score("unknown", "features", "diverged", *M, kinds=("unknown",)),
    score("misplaced", "masking", "diverged", M[0], kinds=("features",)),
    score("missed", "masking", "equivalent"),
    score("broken", "masking", "", error="RuntimeError: shapes"),
    score("spared", "rewrites", "identical"),
    score("flagged", "rewrites", "diverged", *M),
]


def test_the_page_counts_and_names_what_is_not_right() -> None:
    total = summed(SCORES, "0123456789")
    assert (total.faults, total.placed, total.rewrites, total.spared) == (5, 2, 2, 1)
    assert (total.smallest, total.smallest_float64) == (2e-7, 3e-9)
    left = Case.model_validate({"name": "left out", "group": "masking", "edits": [EDIT], "born": ["both m"]})
    text = render_markdown(page(SCORES, total, [score.case for score in SCORES] + [left]))
    for line in (
        "3 of 5 planted faults are caught, 2 are placed as well.",
        "1 of 2 correct rewrites and refactorings are spared.",
        "caught and placed: 2.0e-07 in float32 and 3.0e-09 in float64.",
        "Of 3 kinds of fault named 1 are right, 1 unknown and 1 wrong.",
        "Not tried of 8 cases: left out.",
        "| masking | 3 | 1 | 0 | 0 |",
        "| good | yes | right | both m |",
        "| misplaced | diverged | diverged | both m | forward m |",
        "| missed | diverged | equivalent | both m |",
        "| broken | diverged | raised | both m | RuntimeError: shapes |",
        "| flagged | equivalent | diverged |  | both m |",
        "| misplaced | masking | features |",
    ):
        assert line in text
    whole = render_markdown(page(SCORES[:1], summed(SCORES[:1], ""), [SCORES[0].case]))
    assert "Nothing." in whole and "Not tried" not in whole and "sought for 0 of 0" in whole


def test_a_limit_that_was_not_sought_is_none() -> None:
    edit = {**EDIT, "new": "b * SIZE"}
    given = {"group": "features", "edits": [edit], "born": ["both m"], "size": 1e-3}
    cases = [Case.model_validate({"name": name, **given}) for name in ("swept", "not swept")]
    found = [
        Score(case, dataclasses.replace(SCORES[0]).outcome, limit)
        for case, limit in zip(cases, (1e-5, None), strict=True)
    ]
    text = render_markdown(page(found, summed(found, ""), cases))
    assert "| swept | yes | right | both m | 0.001 | 1e-05 |" in text
    assert "| not swept | yes | right | both m | 0.001 |  |" in text
    assert "sought for 1 of 2 faults with a size; in the median it is 1e-2 of that size" in text


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Detection:
    found = summed(SCORES, "0123456789")
    write_detection(found, tmp_path / "detection.json")
    monkeypatch.setattr(section, "read_detection", lambda: read_detection(tmp_path / "detection.json"))
    return found


def said() -> str:
    (paragraph,) = section.detection(comparison())
    return plain(paragraph.text)


def test_every_report_quotes_the_sum(measured: Detection) -> None:
    assert measured.is_of_this_comparer
    expected = "This comparer: 2 of 5 planted faults caught and placed, 1 of 2 correct rewrites spared, "
    assert said().startswith(expected) and "at commit 0123456" in said() and "has changed" not in said()


def test_a_comparer_that_changed_since_is_said_to(measured: Detection, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(measured, comparer="another")
    monkeypatch.setattr(section, "read_detection", lambda: other)
    assert said().endswith("The comparer has changed since: make selftest measures it again.")
    monkeypatch.setattr(section, "read_detection", lambda: None)
    assert said() == "What this comparer catches has not been measured: make selftest."


def test_the_hash_is_of_each_source_of_the_comparer(tmp_path: Path) -> None:
    for room in detection.ROOMS:
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("1")
    first = comparer_hash(tmp_path)
    comparer_hash.cache_clear()
    (tmp_path / "replay" / "a.py").write_text("2")
    assert comparer_hash(tmp_path) != first
    comparer_hash.cache_clear()
    (tmp_path / "replay" / "a.py").rename(tmp_path / "replay" / "b.py")
    assert comparer_hash(tmp_path) != first and len(comparer_hash()) == 64
