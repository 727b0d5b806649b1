"""With all evidence, a fault of each part of training is caught and placed, and a correct rewrite is spared."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nest_ssl.selftest.cases import read_catalogue, sample
from nest_ssl.selftest.score import Score
from nest_ssl.selftest.trial import Outcome

PAGE = Path(__file__).resolve().parents[2] / "docs" / "detection.json"
SAMPLED = 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quick_part_of_the_catalogue(tmp_path: Path, python: str) -> None:
    """In a process of its own: a case is a fork of one that has trained nothing, as a warm Python has not.

    The quick cases are known to be right. Beside them run others, chosen anew whenever the comparer changes, which are
    held against what docs/detection.json says of them: they may be better, and not worse.
    """
    catalogue = read_catalogue()
    quick, sampled = [case for case in catalogue if case.quick], sample(catalogue, SAMPLED)
    kinds = {kind for case in quick for kind in case.expected_kinds}
    assert len(kinds) >= 10 and sum(not case.is_fault for case in quick) >= 3
    options = ["--quick", "--sample", str(SAMPLED), "--no-limits", "--out", str(tmp_path)]
    command = [python, "-m", "nest_ssl.cli.main", "selftest", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    found = [Outcome.model_validate_json(line) for line in lines if line]
    now = {outcome.name: outcome for outcome in found}
    measured = {one["name"]: Outcome(**one) for one in json.loads(PAGE.read_text())["cases"]}
    for case in quick:
        assert Score(case, now[case.name]).placed, done.stdout + done.stderr
    for case in [case for case in sampled if case.name in measured]:
        before, score = Score(case, measured[case.name]), Score(case, now[case.name])
        assert (score.caught, score.placed) >= (before.caught, before.placed), done.stdout + done.stderr
    again = subprocess.run(command, capture_output=True, text=True, timeout=60)  # nothing is left to try
    assert again.stdout.splitlines()[-1:] == done.stdout.splitlines()[-1:] and "selftest" in again.stdout
