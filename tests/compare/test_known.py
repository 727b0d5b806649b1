"""The user's ledger: it lets pass what it names, as far as it says, as long as it applies."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.compare import compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rules.known import Known, KnownRule, Used, load_known, used_by_any
from nest_ssl.recording.reader import open_recording
from tests.compare.builder import Plan, first, record
from tests.compare.test_between import run

ENTRY = """
- address: decoder.output
  within: 1.0e-5
  follows: 1.0e-1
  cause: the decoder computes in float64
  evidence: https://example.org/1
  expires: 2999-12-31
"""
LATER = datetime.date(2999, 12, 31)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    def rewrite(model: nn.Module) -> None:
        layer = model.decoder
        layer.forward = lambda x: nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).float()

    folder = tmp_path_factory.mktemp("known")
    return (
        record(folder / "nemo", Plan(steps=(0,))),
        record(folder / "nest", Plan("nest", "0.1.0", steps=(0,), after_build=rewrite)),
    )


def known(**fields: Any) -> Known:
    texts = {"address": "decoder.output", "cause": "c", "evidence": "e"}
    return Known(**{**texts, "within": 1e-5, "expires": LATER, **fields})


def compared(sides: tuple[Path, Path], *entries: Known) -> Comparison:
    return compare_recordings(*map(open_recording, sides), declared=[], known=entries)


def test_what_is_known_and_what_follows_from_it_pass(sides: tuple[Path, Path]) -> None:
    comparison = compared(sides, known(follows=10.0))
    assert (comparison.verdict, comparison.exit_code) == ("equivalent", 0)
    (used,) = comparison.ledger
    assert used.count >= 1 and used.followed > 1 and not used.fault


def test_what_follows_passes_only_if_the_entry_says_so(sides: tuple[Path, Path]) -> None:
    assert compared(sides, known()).verdict == "diverged"


def test_what_follows_passes_as_far_as_the_entry_says(sides: tuple[Path, Path]) -> None:
    found = [one for rung in compared(sides, known(follows=10.0)).rungs for one in rung.findings]
    sizes = [one.metrics.relative or 0.0 for one in found if one.metrics and one.address.module != "decoder"]
    assert max(sizes) > 1e-7
    assert compared(sides, known(follows=1.01 * max(sizes))).verdict == "equivalent"
    assert compared(sides, known(follows=0.99 * max(sizes))).verdict == "diverged"


def test_an_entry_about_a_validation_alone_is_used(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one"), run(tmp_path / "other", validation_loss=lambda loss: loss * (1 + 1e-6))
    comparison = compared((one, other), known(address="val_loss"))
    assert (comparison.verdict, comparison.ledger[0].fault, comparison.ledger[0].count) == ("equivalent", "", 1)


@pytest.mark.parametrize("entry", [known(within=1e-12, follows=10.0), known(address="encoder.*", follows=10.0)])
def test_no_more_passes_than_it_names(sides: tuple[Path, Path], entry: Known) -> None:
    assert compared(sides, entry).verdict == "diverged"


def test_an_entry_that_no_longer_applies_fails(sides: tuple[Path, Path]) -> None:
    comparison = compared((sides[0], sides[0]), known())
    assert comparison.verdict == "diverged"
    assert first(comparison)[-1] == "known" and comparison.ledger[0].fault == "no longer a difference"


def test_an_entry_that_one_rank_alone_uses_applies() -> None:
    """Of one rank nothing is said that only all of them show; what none of them uses is out of date."""
    used, unused = known(), known(address="encoder.*")
    ledgers = []
    for counts in ({used: 2}, {}):
        rule = KnownRule(SameBits(), [used, unused], whole=False)
        rule.counts.update(counts)
        assert not rule.out_of_date()
        here = [unused] if counts else [used, unused]  # which a report on this rank alone says
        assert [note.values["address"] for note in rule.undecided()] == [entry.address for entry in here]
        ledgers.append(rule.used())
    assert [(one.entry, one.count, one.fault) for one in used_by_any(ledgers)] == [
        (used, 2, ""), (unused, 0, "no longer a difference"),
    ]  # fmt: skip
    expired = [[Used(used, 1, 0, "expired")], [Used(used, 0, 0, "expired")]]
    assert used_by_any(expired)[0].fault == "expired"


def test_an_entry_whose_day_is_over_fails(sides: tuple[Path, Path]) -> None:
    comparison = compared(sides, known(follows=10.0, expires=datetime.date(2020, 1, 1)))
    assert (comparison.verdict, comparison.ledger[0].fault) == ("diverged", "expired")


def test_the_form_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "known.yaml"
    path.write_text(ENTRY)
    assert load_known(path) == [
        Known("decoder.output", 1e-5, "the decoder computes in float64", "https://example.org/1", LATER, 0.1)
    ]
    for bad in ("within: x", "expires: soon", "cause: ''", "more: 1"):
        key = bad.split(":")[0]
        lines = [line for line in ENTRY.splitlines() if not line.strip().startswith(f"{key}:")]
        path.write_text("\n".join([*lines, f"  {bad}"]))
        with pytest.raises(UserError, match="another shape"):
            load_known(path)
    with pytest.raises(UserError):
        load_known(tmp_path / "none.yaml")
