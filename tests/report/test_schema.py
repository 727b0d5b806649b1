"""`report.schema.json` is what `report.json` is: every verdict is valid, every key is named, what is wrong is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import nest_ssl.report
from nest_ssl.compare.comparison import Comparison, Explanation, KnownDifference
from nest_ssl.compare.findings import RUNGS, SEVERITY, Difference, Note, Remainder, Status, Unexplained
from nest_ssl.compare.proof import Proof
from nest_ssl.report.render.json import SCHEMA
from tests.report.builder import comparison, diverged, finding, measured, other_experiment, setting
from tests.report.test_json import parse
from tests.report.test_proof import EPS, HAD, NORM

PUBLISHED: dict[str, Any] = json.loads((Path(nest_ssl.report.__file__).parent / "report.schema.json").read_text())


def equivalent() -> Comparison:
    found = measured(1e-6, 0.1)
    return comparison(verdict=Status.EQUIVALENT, first=found, first_bits=found)


def explained() -> Comparison:
    return diverged(
        proof=Proof(HAD, born=[NORM, EPS], lacking=[Note("lacks_floor")]),
        unexplained=[Remainder(Unexplained.CALLS, (finding(module="decoder"),))],
        explanations=[Explanation("nest", 0, "Loss over 182 masked frames.", {"tokens": 76})],
        known=[KnownDifference("a", "b", "c", 1, None)],
    )


MADE: dict[str, Callable[[], Comparison]] = {
    "identical": comparison,
    "equivalent": equivalent,
    "diverged": diverged,
    "diverged, explained": explained,
    "another experiment": lambda: other_experiment(setting("config.seed", 42, float("nan"))),
    "inconclusive": lambda: comparison(verdict=Status.INCONCLUSIVE, exit_code=2),
}


def closed(schema: Any) -> Any:
    """The same schema, in which no record may have a key that is not named."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inside = {key: closed(part) for key, part in schema.items()}
    whole = "properties" in schema and "type" in schema and schema["required"] != ["kind"]
    # The first difference is a finding with one key more.
    return {**inside, "additionalProperties": False} if whole and "born_in" not in schema["properties"] else inside


def errors(schema: Any, tree: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in Draft202012Validator(schema).iter_errors(tree)]


def test_it_is_a_schema_of_this_version() -> None:
    Draft202012Validator.check_schema(PUBLISHED)
    assert PUBLISHED["properties"]["schema"] == {"const": SCHEMA}


@pytest.mark.parametrize("name", MADE)
def test_a_report_is_valid(name: str) -> None:
    assert errors(PUBLISHED, parse(MADE[name]())) == []


@pytest.mark.parametrize("name", ["identical", "equivalent", "diverged, explained"])
def test_every_key_is_named(name: str) -> None:
    """A key that is new in the code is to be added to the schema."""
    tree = parse(MADE[name]())
    schema = closed(PUBLISHED)
    schema["properties"]["first_difference"] = {}
    schema["$defs"]["side"]["properties"]["recording"].pop("additionalProperties", None)
    schema["properties"]["losses"]["items"].pop("additionalProperties")  # explainers add what they counted
    schema["properties"]["explanations"] = {}
    assert errors(schema, tree) == []
    tree["invented"] = tree["rungs"][0]["invented"] = 1
    assert len(errors(schema, tree)) == 2


def test_its_lists_are_the_codes() -> None:
    defined = PUBLISHED["$defs"]
    assert defined["rung"]["enum"] == list(RUNGS)
    assert set(defined["status"]["enum"]) == {status.value for status in SEVERITY}
    assert set(defined["finding"]["properties"]["kind"]["enum"]) == {kind.value for kind in Difference}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["verdict"], "same"), (["exit_code"], 0), (["exit_code"], 3), (["schema"], "nest-ssl-report/2"),
        (["rungs", 0, "status"], "fine"), (["differences", 0, "metrics"], {}), (["first_difference"], {}),
        (["losses", 0, "reference"], "0.5"), (["calls", 0, "module"], None), (["rungs"], ...),
        (["differences", 0, "address"], ...), (["draws", 0, "draws"], "605"), (["reference", "recording"], {}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_not_valid(path: list[str | int], value: Any) -> None:
    tree = copy.deepcopy(parse(diverged()))
    place: Any = tree
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert errors(PUBLISHED, tree) != []


def test_identical_with_a_difference_is_not_valid() -> None:
    tree = parse(diverged())
    assert errors(PUBLISHED, {**tree, "verdict": "identical", "exit_code": 0}) != []
