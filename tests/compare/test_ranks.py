"""The verdict over several ranks, from comparisons made by hand."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.compare.born import Born
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Note, Status
from nest_ssl.compare.kinds import FaultKind, Likely
from nest_ssl.compare.ranks import OverRanks, Parted, compare_over_ranks
from nest_ssl.compare.rules.known import Known, Used
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import Phase
from nest_ssl.report.document import plain
from nest_ssl.report.ranks import append_ranks_summary, over_ranks, write_ranks_junit, write_ranks_report
from tests.report.builder import add, comparison, finding, index
from tests.report.test_junit import cases


def weights(**changed: str) -> dict[str, Any]:
    """The digests of three steps: a parameter, one that is frozen, a buffer; `changed`: `w_1="b"` is `w` at step 1."""

    def table(names: str, step: str) -> dict[str, Any]:
        digests = {name: changed.get(f"{name}_{step}", "a") * 64 for name in names}
        return {name: {"shape": [1], "dtype": "float32", "digest": digest} for name, digest in digests.items()}

    made = {"initial_weights/parameter_weights.pt": table("wvfb", "start")}
    for step in "012":
        made[f"step_{step}/parameter_weights.pt"] = table("wvfb", step)
        made[f"step_{step}/parameter_gradients.pt"] = table("wv", step)
    return made


def rank(
    number: int, reference: dict[str, str] | None = None, candidate: dict[str, str] | None = None, **fields: Any
) -> Comparison:
    made = comparison(steps=[0, 1, 2], **fields)
    for side, name, changed in ((made.reference, "nemo", reference), (made.candidate, "nest", candidate)):
        side.index = index(name, world_size=2, rank=number, tensors=weights(**changed or {}))
        side.buffers = frozenset("b")
    return made


DIVERGED = {"verdict": Status.DIVERGED, "exit_code": 1, "first": finding(), "first_bits": finding()}
LITTLE = {"verdict": Status.INCONCLUSIVE, "exit_code": 2}
SAME = {"verdict": Status.IDENTICAL, "exit_code": 0}


def judged(*ranks: Comparison) -> tuple[OverRanks, list[str]]:
    over = compare_over_ranks(ranks)
    return over, [plain(block.text) for block in over_ranks(over) if hasattr(block, "text")]


def test_all_alike(tmp_path: Path) -> None:
    """Batch statistics are each rank's own, and no fault."""
    over, said = judged(rank(0, **SAME), rank(1, {"b_2": "c"}, {"b_2": "c"}, **SAME))
    assert (over.verdict, over.exit_code, over.reference.parted) == (Status.IDENTICAL, 0, None)
    assert (over.reference.parameters, over.reference.buffers) == (2, 1)
    assert said[0].endswith("train identically on 2 ranks")
    assert "all ranks have the same 2 parameters, bit for bit; 1 buffer" in said[-1]
    (tmp_path / "report.html").write_text("of another comparison")
    assert write_ranks_report(over, tmp_path).read_text().startswith("# ")
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["passed"], [each["verdict"] for each in written["ranks"]]) == (True, ["identical"] * 2)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "of another comparison" not in page and said[0] in page and "进程 1" in page


@pytest.mark.parametrize("differing", [(1,), (2,), (1, 2)])
def test_a_buffer_counts_once_whichever_rank_has_it_otherwise(differing: tuple[int, ...]) -> None:
    changed = [{"b_1": "c", "b_2": "c"} if number in differing else {} for number in range(3)]
    over, _ = judged(*(rank(number, one, one, **SAME) for number, one in enumerate(changed)))
    assert (over.reference.buffers, over.candidate.buffers) == (1, 1)


def test_equivalent_is_no_longer_identical() -> None:
    over, said = judged(rank(0, **SAME), rank(1, verdict=Status.EQUIVALENT, exit_code=0))
    assert (over.verdict, over.exit_code) == (Status.EQUIVALENT, 0)
    assert "identically" not in said[0] and said[0].endswith("on 2 ranks")


@pytest.mark.parametrize(
    ("others", "verdict", "code", "title"),
    [
        ([SAME, DIVERGED], Status.DIVERGED, 1, "On rank 1 of 2: nest-ssl"),
        ([LITTLE, SAME], Status.INCONCLUSIVE, 2, "On rank 0 of 2: Too little"),
        ([LITTLE, DIVERGED, SAME], Status.DIVERGED, 1, "On rank 1 of 3: nest-ssl"),
        ([DIVERGED, {**DIVERGED, "exit_code": 4}], Status.DIVERGED, 4, "On rank 1 of 2: "),
    ],
)
def test_the_worst_of_all(others: list[dict[str, Any]], verdict: Status, code: int, title: str) -> None:
    over, said = judged(*(rank(number, **fields) for number, fields in enumerate(others)))
    assert (over.verdict, over.exit_code) == (verdict, code)
    assert said[0].startswith(title), said[0]


def test_ranks_that_part_on_both_sides_are_no_pass(tmp_path: Path) -> None:
    """Both trainers alike forgot to share gradients: they agree, and it is no training in parallel."""
    apart = {"w_1": "b", "w_2": "b", "v_2": "b"}
    over, said = judged(rank(0, **SAME), rank(1, apart, apart, **SAME))
    assert (over.verdict, over.exit_code) == (Status.INCONCLUSIVE, 2)
    assert over.reference.parted == over.candidate.parted == Parted(1, 1, "w", 0)
    assert "and yet their ranks part" in said[0]
    write_ranks_junit(over, tmp_path)
    (case,) = cases((tmp_path / "report.junit.xml").read_text()).values()
    assert [(child.tag, child.get("type"), child.get("message")) for child in case] == [
        ("error", "inconclusive", said[0])
    ]
    append_ranks_summary(over, tmp_path / "page.md")
    assert said[0] in (tmp_path / "page.md").read_text()
    assert "after step 1 rank 1 has another w than rank 0, and 0 more" in said[-1]


def test_what_is_not_trained_may_differ() -> None:
    over, said = judged(rank(0, **SAME), rank(1, {"f_2": "d"}, {"f_2": "d"}, **SAME))
    assert over.reference.parted is None and over.exit_code == 0
    assert (over.reference.buffers, over.reference.frozen) == (0, 1), "a frozen parameter is no buffer"
    assert "frozen, and each rank has its own: 1 parameter" in said[-1]


@pytest.mark.parametrize(
    ("begins", "named"),
    [
        ((None, 1), 1),  # rank 1 alone draws otherwise; what rank 0 adds up follows
        ((0, 1), 0),  # the earlier one
        ((1, 1), None),  # both: no matter of the ranks
        ((None, None), None),  # gradients alone
    ],
)
def test_what_one_rank_alone_does_first_is_a_matter_of_the_ranks(
    begins: tuple[int | None, int | None], named: int | None
) -> None:
    made = []
    for number, step in enumerate(begins):
        one = rank(number, **DIVERGED)
        one.kinds = [Likely(FaultKind.MASKING)]
        add(one, "gradients", finding("gradients", 1, Phase.GRADIENTS, 0, kind=Kind.GRADIENT))
        if step is not None:
            add(one, "forward", finding(step=step))
        made.append(one)
    over, said = judged(*made)
    expected = FaultKind.MASKING if named is None else FaultKind.RANKS
    assert {likely.kind for one in over.ranks for likely in one.kinds} == {expected}
    assert any(f"only rank {named} differs" in text for text in said) is (named is not None)


@pytest.mark.parametrize(("counts", "fault"), [((0, 3), False), ((0, 0), True)])
def test_a_known_difference_of_one_rank_alone_applies(counts: tuple[int, int], fault: bool, tmp_path: Path) -> None:
    entry = Known("decoder.output", 1e-5, "c", "e", datetime.date(2999, 1, 1))
    over, said = judged(*(rank(n, **SAME, ledger=[Used(entry, count)]) for n, count in enumerate(counts)))
    assert (over.verdict, over.exit_code) == ((Status.DIVERGED, 1) if fault else (Status.IDENTICAL, 0))
    assert ("applies to none" in said[0]) is fault
    assert ("no longer a difference" in write_ranks_report(over, tmp_path).read_text()) is fault


def test_what_the_one_rank_shows_by_itself_is_said() -> None:
    """A fault that only the data of rank 1 meets: it is a matter of attention, and still says so."""
    made = [rank(number, **DIVERGED) for number in (0, 1)]
    add(made[1], "forward", finding(step=0))
    place = Born("forward", "layers.0.attn", 0, 0, 1)
    made[0].kinds = [Likely(FaultKind.BACKWARD_ONLY)]
    made[1].kinds = [Likely(FaultKind.ATTENTION, Note("kind_loss"), born=place)]
    over, said = judged(*made)
    assert [one.kind for one in over.ranks[0].kinds[0].own] == [FaultKind.ATTENTION]
    shown = next(text for text in said if "only rank 1 differs" in text)
    assert "attention (module: layers.0.attn)" in shown and "backward" not in shown
