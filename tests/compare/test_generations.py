"""Two generations of NeMo: what is compared between its releases, and a mistake between a port and its reference."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.report.render.json import as_tree
from nest_ssl.report.write import report_text
from tests.compare.builder import edit_config, edit_index, first, judge


def entry(name: str, where: str, value: Any) -> dict[str, Any]:
    return {"name": name, "where": where, "what": f"about {name}", "value": value}


OLD = {
    "name": "2.4",
    "differences": [
        entry("late", "encoder", "plain"),
        entry("padding", "preprocessor", "reflect"),
        entry("shared", "masking", 1),
        entry("mixing", "batch", "numpy"),
    ],
}
NEW = {
    "name": "3.0",
    "differences": [
        entry("late", "encoder", "masked"),
        entry("padding", "preprocessor", "constant"),
        entry("shared", "masking", 1),
        entry("mixing", "batch", "python"),
    ],
}
Sides = Callable[..., tuple[Path, Path]]


@pytest.fixture
def sides(reference: Path, tmp_path: Path) -> Sides:
    """`sides(one, other, name)`: the same recording twice, of other generations; the second by trainer `name`."""

    def make(one: Any, other: Any, name: str) -> tuple[Path, Path]:
        paths = tmp_path / "one", tmp_path / "other"
        for path, generation in zip(paths, (one, other), strict=True):
            shutil.copytree(reference, path)
            edit_index(path, lambda index, generation=generation: index.update(generation=generation))
            release = (generation or {}).get("name")
            edit_config(path, lambda config, release=release: config.update(nemo=release))
        edit_index(paths[1], lambda index: index["trainer"].update(name=name))
        return paths

    return make


def test_two_releases_of_nemo_are_compared(sides: Sides) -> None:
    comparison = judge(*sides(OLD, NEW, "nemo"))
    assert (comparison.verdict, comparison.exit_code) == ("identical", 0)


def test_what_is_known_to_have_changed_stands_in_the_order_of_execution(sides: Sides) -> None:
    known = judge(*sides(OLD, NEW, "nemo")).known
    assert [(k.name, k.where, k.reference, k.candidate) for k in known] == [
        ("mixing", "batch", "numpy", "python"),
        ("padding", "preprocessor", "reflect", "constant"),
        ("late", "encoder", "plain", "masked"),
    ]


def test_a_port_that_follows_another_generation_is_told(sides: Sides) -> None:
    comparison = judge(*sides(OLD, NEW, "nest"))
    assert (comparison.exit_code, first(comparison)) == (4, ("contract", None, None, None, "generation"))
    assert comparison.first is not None
    assert (comparison.first.reference, comparison.first.candidate) == ("2.4", "3.0")


@pytest.mark.parametrize(("one", "other"), [(OLD, OLD), (OLD, None), (None, NEW), (None, None)])
def test_one_generation_or_an_unknown_one_is_no_difference(sides: Sides, one: Any, other: Any) -> None:
    comparison = judge(*sides(one, other, "nest"))
    assert (comparison.verdict, comparison.known) == ("identical", [])


def test_the_report_lists_what_is_known(sides: Sides) -> None:
    comparison = judge(*sides(OLD, NEW, "nemo"))
    text = report_text(comparison)
    assert "## Known to have changed between NeMo 2.4 and 3.0" in text
    assert "| padding | `preprocessor` | about padding | reflect | constant |" in text
    assert [entry.name for entry in as_tree(comparison)["known_differences"]] == ["mixing", "padding", "late"]
    assert "Known to have changed" not in report_text(judge(*[Path(comparison.reference.path)] * 2))
