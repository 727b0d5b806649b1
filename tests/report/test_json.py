"""`report.json`: the findings, complete, in a schema whose keys are only ever added to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.compare.comparison import Comparison, Explanation, Losses
from nest_ssl.compare.findings import Birth, Cause, Fate, Note, Remainder, Status, Unexplained
from nest_ssl.report.render.json import SCHEMA, render_json, strict
from tests.report.builder import comparison, diverged, draw, finding, measured, other_experiment, setting

# Of nest-ssl-report/1 as it was first published: a program that read them then reads them now.
KEYS = """schema verdict exit_code first_difference first_bit_difference first_beyond_tolerance origin follows
not_explained rungs tolerance steps losses facts declared known_differences notes differences draws calls reference
candidate""".split()
OF_A_DIFFERENCE = """rung step module call tensor index reference candidate kind within_tolerance rank shape dtype
metrics""".split()
OF_METRICS = """elements differing outside nonfinite_disagree nan_reference nan_candidate max_abs relative cosine
max_ulp""".split()
OF_A_RUNG = "name status compared differing missing_reference missing_candidate steps".split()
OF_A_STEP = "step rank status compared differing missing_reference missing_candidate not_compared".split()
OF_A_DRAW = "step rank generator reference candidate draws relation came_in".split()
OF_A_CALL = "step rank order module call relation tensor max_abs relative".split()


def parse(made: Comparison) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    tree: dict[str, Any] = json.loads(render_json(made), parse_constant=refuse)
    return tree


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        (KEYS, []),
        ([*OF_A_DIFFERENCE, "born_in"], ["first_difference"]),
        (OF_A_DIFFERENCE, ["differences", 0]),
        (OF_METRICS, ["first_difference", "metrics"]),
        (OF_A_RUNG, ["rungs", 5]),
        (OF_A_STEP, ["rungs", 5, "steps", 0]),
        (OF_A_DRAW, ["draws", 0]),
        (OF_A_CALL, ["calls", 0]),
        (["step", "reference", "candidate"], ["losses", 0]),
        (["parameters", "batch", "tensors", "tensors_same", "bytes"], ["facts"]),
        (["kind", "atol", "rtol"], ["tolerance"]),
        (["label", "path", "recording", "config"], ["reference"]),
    ],
)
def test_keys_are_only_added(keys: list[str], path: list[str | int]) -> None:
    tree: Any = parse(diverged())
    for step in path:
        tree = tree[step]
    assert [key for key in keys if key not in tree] == []


def test_values() -> None:
    tree = parse(diverged())
    assert (tree["schema"], SCHEMA) == ("nest-ssl-report/1", "nest-ssl-report/1")
    assert (tree["verdict"], tree["exit_code"]) == ("diverged", 1)
    first = tree["first_difference"]
    wanted = {
        "rung": "forward",
        "step": 0,
        "module": "encoder.layers.1",
        "call": 0,
        "tensor": "output",
        "kind": "values",
    }
    assert {key: first[key] for key in wanted} == wanted
    assert (first["born_in"], first["index"], first["reference"]) == (
        "encoder.layers.1",
        [0, 1, 2],
        0.18231764435768127,
    )
    assert [rung["name"] for rung in tree["rungs"]][6] == "forward"
    assert tree["rungs"][6]["compared"] == 52
    assert tree["rungs"][6]["steps"][0]["compared"] == {"calls": 22, "outputs": 4}
    assert tree["reference"]["recording"]["trainer"]["name"] == "nemo"
    assert tree["draws"][1]["reference"] == ["masking#0"]
    assert tree["calls"][0]["relation"] == "born here"
    assert tree["notes"] == ["Weights part after step 0."]


def test_no_markup_in_sentences() -> None:
    made = diverged(unexplained=[Remainder(Unexplained.CALLS, (finding(module="decoder"),))])
    tree = parse(made)
    assert tree["origin"].startswith("Its inputs and all calls inside it")
    assert tree["follows"][0].startswith("at step 0: 7 calls")
    assert tree["not_explained"] == ["calls in other modules differ though their inputs have the same bits: decoder"]
    assert not any(
        mark in json.dumps([tree[key] for key in ("origin", "follows", "not_explained", "notes")]) for mark in "`*"
    )


def test_the_findings_stand_beside_the_sentences() -> None:
    made = diverged(unexplained=[Remainder(Unexplained.CALLS, (finding(module="decoder"),))])
    made.cause = Cause(Birth.OUTPUT, "encoder", draw=draw(counts=(1, 2), fate=Fate.OTHER_COUNT), unrecorded=(1, 8))
    tree = parse(made)
    assert (tree["cause"]["birth"], tree["cause"]["module"], tree["cause"]["unrecorded"]) == (
        "output",
        "encoder",
        [1, 8],
    )
    assert tree["cause"]["draw"]["draws"] == [1, 2]
    assert tree["consequences"][1] == {"rung": "loss", "step": 0, "count": 1, "largest": 3.1e-4}
    assert tree["unexplained"][0]["why"] == "calls"
    assert tree["unexplained"][0]["findings"][0]["module"] == "decoder"
    assert tree["notes_by_kind"] == [{"kind": "weights_part", "values": {"step": 0}}]
    assert tree["first_difference"]["judgement"] == {
        "within": False, "rule": "fixed", "bound": {"atol": 1e-5, "rtol": 1e-5}, "ratio": 300.0,
    }  # fmt: skip
    assert tree["first_difference"]["address"]["kind"] == "output"
    assert (tree["first_difference"]["phase"], tree["first_difference"]["event"]) == ("forward", 26)


def test_every_draw_is_there_and_not_only_those_that_the_report_shows() -> None:
    made = comparison(draws=[draw(module="a", step=step) for step in range(50)])
    assert [one["step"] for one in parse(made)["draws"]] == list(range(50))


def test_every_difference_is_there() -> None:
    made = diverged()
    assert (
        len(parse(made)["differences"]) == sum(len(rung.findings) for rung in made.rungs if rung.name != "steps") == 4
    )


def test_what_an_explainer_counted_stands_with_the_loss() -> None:
    values = {"masked_frames": [182, 182], "counted_tokens": [21, 21], "tokens": 76}
    made = comparison(explanations=[Explanation("nest", 0, "Loss over 182 masked frames.", values)])
    tree = parse(made)
    assert tree["losses"] == [
        {**values, "step": 0, "reference": 5.0926868, "candidate": 5.0926868},
        {"step": 1, "reference": 5.0, "candidate": 5.0},
    ]
    assert tree["explanations"][0]["sentence"] == "Loss over 182 masked frames."


def test_identical_has_no_first_difference() -> None:
    tree = parse(comparison())
    assert (tree["first_difference"], tree["cause"], tree["differences"], tree["calls"]) == (None, None, [], [])


def test_the_contract_keeps_its_statuses() -> None:
    """That they mean nothing is said for people; the findings are what they are."""
    tree = parse(other_experiment(setting("seed", 1, 2)))
    assert {rung["name"]: rung["status"] for rung in tree["rungs"]}["forward"] == "diverged"
    assert (tree["first_difference"]["tensor"], tree["first_difference"]["step"]) == ("seed", None)


def test_nan_and_infinity_are_texts() -> None:
    first = finding(reference=-math.inf, candidate=math.nan)
    tree = parse(diverged(first=first, losses=[Losses(0, math.nan, 1.0)]))
    assert (tree["first_difference"]["reference"], tree["first_difference"]["candidate"]) == ("-inf", "nan")
    assert tree["losses"][0]["reference"] == "nan"


def test_strict() -> None:
    value = {
        1: (math.nan, math.inf, Path("x")),
        "s": Status.IDENTICAL,
        "n": Note("k", {"a": {2: b"x"}}),
        "t": True,
        "z": None,
    }
    assert strict(value) == {
        "1": ["nan", "inf", "x"], "s": "identical", "n": {"kind": "k", "values": {"a": {"2": "b'x'"}}}, "t": True,
        "z": None,
    }  # fmt: skip


def test_the_same_comparison_is_the_same_text() -> None:
    assert render_json(diverged()) == render_json(diverged())
    assert render_json(diverged()) != render_json(diverged(first=measured(1.0)))
