"""The matrix's own machinery, without a model: what differs first, pairs, what is kept, the page."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from nest_ssl.base.errors import UserError
from nest_ssl.cli.matrix import main
from nest_ssl.config.strict import read_config
from nest_ssl.matrix import runs
from nest_ssl.matrix.page import amended, cells_of, page, part, parts_of
from nest_ssl.matrix.runs import RESULTS, Cell, read_cells
from nest_ssl.matrix.step import digest_of, first_difference
from nest_ssl.matrix.variants import PAIRS, VARIANTS, Variant, pairs, pairs_of_listed
from nest_ssl.matrix.worker import answer
from nest_ssl.run.subject import Subject

CELL = Cell("key", "norm", "layer norm", "", "", None, 990, 1.5)


@pytest.mark.parametrize(
    ("candidate", "found"),
    [
        ({"a": "1", "b": "2"}, None),
        ({"a": "1", "b": "3"}, "b"),
        ({"a": "1"}, "b (not in the candidate)"),
        ({"a": "1", "b": "2", "c": "4"}, "c (not in the reference)"),
    ],
)
def test_the_first_difference(candidate: dict[str, str], found: str | None) -> None:
    assert first_difference({"a": "1", "b": "2"}, candidate) == found


def test_a_digest_is_of_every_bit_the_shape_and_the_type() -> None:
    zeros = torch.zeros(2, 3)
    others = [-zeros, zeros.view(3, 2), zeros.to(torch.int32), zeros.double(), zeros + 1e-45]
    assert len({digest_of(tensor) for tensor in (zeros, *others)}) == 6
    assert digest_of(zeros.T.contiguous().T) == digest_of(zeros)


def test_pairs_are_many_differ_and_stay_the_same() -> None:
    drawn = pairs()
    assert drawn == pairs() and len(drawn) == len({pair.overrides for pair in drawn}) == PAIRS >= 60
    keys = [override.partition("=")[0] for pair in drawn for override in {*pair.overrides}]
    assert {"model.encoder.conv_norm_type", "model.encoder.att_context_size"} <= {*keys}
    alike = [replace(VARIANTS[1], group=group) for group in "ab"]
    never_both = pairs((VARIANTS[0], *alike, Variant("c", "c", ("x=1",))), number=2)
    assert all("x=1" in pair.overrides for pair in never_both)


def test_names_are_unlike_and_the_recipe_is_right() -> None:
    assert len({variant.title for variant in VARIANTS}) == len(VARIANTS) >= 72
    read_config(VARIANTS[0].settings)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "same bits"),
        ({"difference": "loss"}, "other bits"),
        ({"reference": "TypeError"}, "only the port trains"),
        ({"candidate": "refused"}, "only NeMo trains"),
        ({"candidate": "refused", "reference": "TypeError"}, "refused"),
    ],
)
def test_verdicts(change: dict[str, str], verdict: str) -> None:
    cell = replace(CELL, **change)  # type: ignore[arg-type]
    assert cell.verdict == verdict and cell.is_right == (verdict in ("same bits", "refused"))
    assert verdict in page("3.0.0", [cell], "0" * 40)


def test_a_release_has_its_part_of_the_page_and_leaves_those_of_others() -> None:
    one = page("2.4.1", [CELL, replace(CELL, reference="TypeError", candidate="refused")], "a" * 40)
    both = page("3.0.0", [CELL], "b" * 40, one)
    assert both.index("## NeMo 3.0.0") < both.index("## NeMo 2.4.1") and both.endswith(one[one.index("## NeMo") :])
    assert page("2.4.1", [CELL], "c" * 40, both).count("## NeMo ") == 2 and "ccccccc" in page(
        "2.4.1", [CELL], "c" * 40, both
    )


def test_some_cells_are_put_in_place_of_their_rows_and_the_rest_stays() -> None:
    rows = [
        replace(CELL, group="", name="the recipe"),
        replace(CELL, group="class", name="adapters", candidate="no `a`|b", places=0),
        replace(CELL, difference="loss"),
        replace(CELL, name="group norm of 7", reference="TypeError", candidate="refused", places=0),
    ]
    before = page("2.7.3", rows, "a" * 40, page("3.0.0", [CELL], "b" * 40))
    assert part("2.7.3", [*cells_of(parts_of(before)["2.7.3"])], "") == part("2.7.3", rows, "")
    order = [": the recipe", "norm: layer norm", "norm: new", "norm: group norm of 7"]
    after = amended("2.7.3", [replace(CELL, name="new"), CELL], order, "c" * 40, before)
    found = [*cells_of(parts_of(after)["2.7.3"])]
    assert [cell.name for cell in found] == ["the recipe", "layer norm", "new", "group norm of 7"]
    assert "4 variants: 3 same bits, 1 refused; 2,970 values compared." in after
    assert "commit aaaaaaa, torch on one CPU thread a side. Measured" in after
    assert "at commit ccccccc: 2 of them (norm)." in after
    assert parts_of(after)["3.0.0"] == parts_of(before)["3.0.0"]


@pytest.mark.parametrize("only", ["", "norm: layer norm"])
def test_what_the_page_lacks_is_measured(only: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, titles = tmp_path / "page.md", [variant.title for variant in (*VARIANTS, *pairs(), *pairs_of_listed())]
    arguments = ["--amend", "--page", str(where), *(["--only", only] if only else [])]
    with pytest.raises(UserError, match="nothing of this release"):
        main(arguments)
    there = [replace(CELL, group=group, name=name) for group, _, name in (title.partition(": ") for title in titles)]
    where.write_text(page("3.0.0", [replace(CELL, name="of before"), *there[:3], *there[5:]], "a" * 40))

    def measured(variants: list[Variant], *_: object) -> list[Cell]:
        return [replace(CELL, group=variant.group, name=variant.name, seconds=9.5) for variant in variants]

    monkeypatch.setattr(runs, "run_matrix", measured)
    assert main(arguments) == 0
    found = {cell.group + ": " + cell.name: cell.seconds for cell in cells_of(where.read_text())}
    assert [title for title in found if found[title] == 9.5] == ([only] if only else titles[3:5])
    assert [*found] == [title for title in titles if not only or title not in titles[3:5]]
    monkeypatch.setattr(runs, "run_matrix", lambda *_: pytest.fail("nothing is lacking"))
    assert only or main(arguments) == 0


def test_what_was_found_isread_cells_again_but_for_a_line_cut_short(tmp_path: Path) -> None:
    import json

    line = json.dumps(asdict(CELL))
    (tmp_path / RESULTS).write_text(f"{line}\n{line[:20]}")
    assert [*read_cells(tmp_path / RESULTS)] == [CELL]
    assert [*read_cells(tmp_path / "none")] == []


@pytest.mark.parametrize(
    ("file", "known"),
    [("conf/size/tiny.yaml", False), ("nest_ssl/model/nest.py", False), ("scripts/train_nemo.py", False),
     ("nest_ssl/model/__pycache__/nest.pyc", True), ("docs/a.yaml", True)],
)  # fmt: skip
def test_a_cell_is_of_its_source(file: str, known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    for place in ("scripts/train_nemo.py", "scripts/train_nest.py", "nest_ssl/releases.py", file):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("before")
    before = runs.keys_of(VARIANTS[:1], "3.0.0")
    (tmp_path / file).write_text("after")
    assert (runs.keys_of(VARIANTS[:1], "3.0.0") == before) == known


def test_a_cell_is_of_the_release_that_it_names() -> None:
    nemo = Subject("nemo", "nemo_toolkit", lambda: None, lambda *_: None, find_version=lambda: "2.7.3")  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=r"NeMo 2\.7\.3 is installed there: --nemo 3\.0\.0"):
        answer(nemo, ["nemo=3.0.0"])
    assert "no such size" in str(answer(nemo, ["nemo=2.7.3", "size=huge"]))


@pytest.mark.parametrize(
    ("title", "release", "code"),
    [("norm: layer norm", "3.0.0", 1), ("norm: group norm of 7", "3.0.0", 0), ("norm: layer norm", "2.7.3", 0)],
)
def test_what_stops_both_sides_is_known(title: str, release: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours that stops both is no variant that NeMo does not train."""
    group, _, name = title.partition(": ")
    refused = replace(CELL, group=group, name=name, reference="KeyError", candidate="KeyError")
    monkeypatch.setattr(runs, "run_matrix", lambda *_: [refused])
    assert main(["--only", title, "--nemo", release]) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "atention: *"], r"no such variant: --only 'atention: \*'. Did you mean attention: \*"),
        (["--only", "zzz"], "no such variant: --only 'zzz'. See docs/parity-matrix.md"),
        (["--jobs", "-1"], "not a number of pairs: --jobs -1. Give a whole number"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        main(words)
