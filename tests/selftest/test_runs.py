"""A self-test that was interrupted goes on where it stopped, and two never work in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import lock
from nest_ssl.selftest import runs
from nest_ssl.selftest.cases import Case, read_catalogue
from nest_ssl.selftest.runs import RESULTS, Runner
from nest_ssl.selftest.trial import Outcome


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is shown of cases that are not trained but called diverged; children are forks, and see this too."""

    def prepared(recipe: str, folder: Path) -> None:
        (folder / "reference").mkdir(parents=True)
        (folder / "reference" / "recording.json").touch()

    def diverged(case: Case, size: float | None, key: str, references: Path, folder: Path) -> Outcome:
        return Outcome(key=key, name=case.name, size=case.size if size is None else size, verdict="diverged")

    monkeypatch.setattr(runs, "_warm_up", lambda: None)
    monkeypatch.setattr(runs, "record_reference", prepared)
    monkeypatch.setattr(runs, "outcome_of", diverged)
    return []


def cases_of_one_size() -> list[Case]:
    return [case for case in read_catalogue() if case.recipe == "plain" and case.size is None][:4]


def test_it_goes_on_where_it_stopped(tmp_path: Path, said: list[str]) -> None:
    cases = cases_of_one_size()
    Runner(tmp_path, 2, said.append).run(cases[:3])
    assert len(said) == 3
    lines = [line for line in (tmp_path / RESULTS).read_text().splitlines(keepends=True) if line.strip()]
    (tmp_path / RESULTS).write_text("".join(lines[:2]) + lines[2][:40])  # killed while it wrote the third
    kept = {Outcome.model_validate_json(line).name for line in lines[:2]}
    said.clear()
    again = Runner(tmp_path, 2, said.append)
    again.run(cases)
    left = [case.name for case in cases if case.name not in kept]
    assert sorted(text.split(": ")[1] for text in said) == sorted(left) and len(left) == 2
    assert [score.outcome.verdict for score in again.scores(cases)] == ["diverged"] * 4
    said.clear()
    Runner(tmp_path, 2, said.append).run(cases)
    assert said == []


def test_what_was_found_of_another_comparer_is_not_taken(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = cases_of_one_size()[:1]
    Runner(tmp_path, 1, said.append).run(cases)
    monkeypatch.setattr(runs, "comparer_hash", lambda: "another")
    Runner(tmp_path, 1, said.append).run(cases)
    assert len(said) == 2


def test_a_second_one_in_the_same_folder_is_refused_and_leaves_it_alone(tmp_path: Path, said: list[str]) -> None:
    reference = tmp_path / runs.REFERENCES / "plain" / "reference" / "recording.json"
    reference.parent.mkdir(parents=True)
    reference.touch()
    with lock(tmp_path / ".lock", "self-test"), pytest.raises(UserError, match="this process writes here already"):
        Runner(tmp_path, 1, said.append).run(cases_of_one_size())
    assert reference.exists() and said == []


def test_out_of_time_it_begins_no_case_and_knows_what_it_tried(tmp_path: Path, said: list[str]) -> None:
    sized = next(case for case in read_catalogue() if case.recipe == "plain" and case.size is not None)
    cases = [*cases_of_one_size()[:1], sized]
    Runner(tmp_path, 1, said.append).run(cases, seconds=0.0)
    assert said == []
    runner = Runner(tmp_path, 1, said.append)
    runner.run(cases, limits=False)
    assert [score.limit for score in runner.scores(cases)] == [None, None]  # caught, and no smaller one was tried
    runner.run(cases)
    smallest = runner.scores(cases)[1].limit  # whatever is tried is caught here
    assert smallest is not None and smallest < 1e-10
