"""What a reader and a program find in the reports."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.compare.result import Comparison, Draw
from nest_ssl.report import print_summary, write_reports
from nest_ssl.report.draws import collapse
from nest_ssl.report.facts import reproduce
from nest_ssl.report.json_report import SCHEMA, as_tree, render_json, strict
from nest_ssl.report.markdown import render_markdown
from nest_ssl.report.wording import cell, number, small, steps_text, table
from tests.compare.builder import edit_config, edit_index, edit_tensors, judge, remove

Make = Callable[..., Path]
NAMES = ["contract", "structure", "initial_weights", "batch", "draws", "forward", "loss", "gradients",
         "weights", "steps"]  # fmt: skip


def first_screen(text: str) -> str:
    """What stands above the first section."""
    return text.split("\n## ")[0]


@pytest.fixture
def diverged(reference: Path, make: Make) -> Comparison:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[1].factor = 0.51

    return judge(reference, make(after_build=plant))


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_identical_fits_one_screen(reference: Path, make: Make) -> None:
    screen = first_screen(render_markdown(judge(reference, make())))
    assert screen.startswith("# NeMo 3.0.0 and nest-ssl 0.1.0 train identically\n")
    assert "**identical**: 425 of 425 tensors have the same bits, over steps 0 to 1, from seed 42." in screen
    for name in (
        "contract",
        "structure",
        "batch",
        "random draws",
        "forward",
        "gradients",
        "after the step",
        "over steps",
    ):
        assert f"| {name} | identical |" in screen
    assert "2 x (22 calls, 4 outputs)" in screen
    assert "681 parameters, 2 x 2.0 s, cpu, " in screen
    assert " tokens counted." in screen
    assert "torch 2." in screen
    assert "Reproduce" in screen
    assert len(screen.splitlines()) < 40


def test_the_headline_of_a_divergence(diverged: Comparison) -> None:
    screen = first_screen(render_markdown(diverged))
    title, *rest = screen.splitlines()
    assert title == "# nest-ssl 0.1.0 parts from NeMo 3.0.0 at step 0, forward, `encoder.layers.1`, `output`"
    assert rest[1].startswith("**diverged**: its inputs and all calls inside it have the same bits")
    assert "| `encoder.layers.1`, `output` [2, 4, 8] float32, at [" in screen
    assert "largest difference / relative / ulp" in screen
    assert "Follows from it: at step 0: " in screen
    assert "Not explained by it: nothing." in screen


def test_the_sections_of_a_divergence(diverged: Comparison) -> None:
    text = render_markdown(diverged)
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    wanted = ["## Over steps", "## Forward", "## Gradients", "## Calls that differ at step 0", "## Tolerance",
              "## Declared differences", "## Provenance", "## Notes"]  # fmt: skip
    assert [name for name in wanted if any(section.startswith(name) for section in sections)] == wanted
    assert "| 13 | `encoder.layers.1` | 0 | born here | `output` |" in text
    assert "fixed tolerance (atol 1e-05, rtol 1e-05)" in text


def test_the_section_on_random_draws(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        forward = model.masking.forward
        model.masking.forward = lambda features: (torch.rand(3), forward(features))[1]

    comparison = judge(reference, make(after_build=plant))
    text = render_markdown(comparison)
    title = "# nest-ssl 0.1.0 parts from NeMo 3.0.0 at step 0, random draws, `masking`, `torch_cpu`"
    assert text.splitlines()[0] == title
    assert "| `masking`, `torch_cpu` | 8 | 11 |" in first_screen(text)
    section = text.split("## Random draws\n")[1].split("\n## ")[0]
    assert "| - | model construction | 1 | torch_cpu | 605 | 605 | same |" in section
    assert "| 0 | `masking` | 1 | torch_cpu | 8 | 11 | other count |" in section
    assert "Draws differ at 1 of the other 1 step, too." in section
    assert "rng.forward_done" not in text, "what follows from the draws is not told twice"
    drawn = [draw for draw in as_tree(comparison)["draws"] if draw["relation"] == "other count"]
    assert [(d["step"], d["reference"], d["draws"]) for d in drawn] == [
        (step, ("masking#0",), (8, 11)) for step in (0, 1)
    ]


def test_like_modules_share_a_line() -> None:
    def draw(stage: str, count: int, relation: str = "same") -> Draw:
        return Draw(0, 0, "torch_cpu", (stage,), (stage,), (count, count), relation, 0, False, None)

    draws = [draw("a.0.drop#0", 2), draw("a.1.drop#0", 3), draw("a.1.drop#1", 4, "came in"), draw("a.drop#0", 5)]
    assert [[d.draws[0] for d in group] for group in collapse(draws)] == [[2, 3], [4], [5]]


def test_every_table_is_well_formed(diverged: Comparison) -> None:
    width = None
    for line in render_markdown(diverged).splitlines():
        if line.startswith("|"):
            columns = line.replace("\\|", "").count("|")
            assert width in (None, columns), line
            width = columns
        else:
            width = None


def test_another_experiment_is_the_title(reference: Path, copy: Path) -> None:
    edit_config(copy, lambda config: config["model"]["optim"].update(lr=5.0))
    screen = first_screen(render_markdown(judge(reference, copy)))
    assert "did not run the same experiment: `config.model.optim.lr` differs" in screen
    assert "| `config.model.optim.lr` | 0.01 | 5 |" in screen
    assert "**inconclusive**" in screen


def test_too_little_says_what_is_lacking(reference: Path, copy: Path) -> None:
    remove(copy, "step_1/layer_outputs.pkl")
    screen = first_screen(render_markdown(judge(reference, copy)))
    assert screen.startswith("# Too little was recorded to compare")
    assert "step 1: the candidate has no layer_outputs.pkl" in screen


def test_many_reasons_are_cut_short(copy: Path) -> None:
    for name in ("batch.pt", "loss.pt", "rng.json"):
        remove(copy, f"step_0/{name}")
        remove(copy, f"step_1/{name}")
    verdict = render_markdown(judge(copy, copy)).splitlines()[2]
    assert verdict.endswith(" more.")
    assert verdict.count(";") == 3


def test_a_nan_loss_is_explained_on_the_first_screen(copy: Path) -> None:
    edit_tensors(copy, "step_0/loss.pt", lambda loss: loss.update(loss=torch.tensor(math.nan)))
    edit_tensors(copy, "step_0/forward_output.pt", lambda output: output["masks"].zero_())
    assert "No token counts" in first_screen(render_markdown(judge(copy, copy)))


def test_nan_on_one_side_is_told(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/loss.pt", lambda loss: loss.update(loss=torch.tensor(math.nan)))
    assert "| NaN | 0 | 1 |" in render_markdown(judge(reference, copy))


def test_no_hash_and_no_emoji_in_the_text(diverged: Comparison, reference: Path) -> None:
    text = render_markdown(diverged)
    assert text.isascii()
    assert not any(len(word) >= 32 and set(word) <= set("0123456789abcdef") for word in text.replace("`", " ").split())
    assert "sha256" not in text


# --- how to do it again -----------------------------------------------------------------------------------------------


def command_of(name: str, *more: str) -> list[str]:
    shared = ["size=tiny", "run=quick", "seed=7", "save_steps=0,1", "batches=2", "trainer.accelerator=auto"]
    return [f"train_{name}.py", *shared, "overwrite=true", f"output_dir=outputs/{name}", *more]


@pytest.mark.parametrize(
    ("nemo", "nest", "line"),
    [
        ([], [], "make align SIZE=tiny SEED=7 STEPS=0,1 BATCHES=2"),
        (["nemo=3.0.0"], ["nemo=3.0.0"], "make align SIZE=tiny SEED=7 STEPS=0,1 BATCHES=2"),
        (["nemo=2.7.3"], ["nemo=2.7.3"], "make align NEMO_VERSION=2.7.3 SIZE=tiny SEED=7 STEPS=0,1 BATCHES=2"),
        (["+model.x=1"], ["model.x=1"], "make align SIZE=tiny SEED=7 STEPS=0,1 BATCHES=2 ARGS=model.x=1"),
        (["a=1"], ["a=2"], "make align SIZE=tiny SEED=7 STEPS=0,1 BATCHES=2 NEMO_ARGS=a=1 NEST_ARGS=a=2"),
    ],
)
def test_make_says_it_again(reference: Path, make: Make, nemo: list[str], nest: list[str], line: str) -> None:
    comparison = judge(reference, make())
    comparison.reference.index["command"] = command_of("nemo", *nemo)
    comparison.candidate.index["command"] = command_of("nest", *nest)
    assert reproduce(comparison) == [line]


def test_other_pairs_are_told_their_commands(reference: Path, copy: Path) -> None:
    comparison = judge(reference, copy)
    comparison.reference.index["command"] = ["train_nemo.py", "--config-name", "mine"]
    commands = reproduce(comparison)
    assert commands[0] == "python scripts/train_nemo.py --config-name mine"
    assert commands[-1].startswith("python scripts/compare_outputs.py --reference ")


# --- JSON -------------------------------------------------------------------------------------------------------------


def parse(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_schema(diverged: Comparison) -> None:
    tree = parse(render_json(diverged))
    assert (tree["schema"], tree["verdict"], tree["exit_code"]) == (SCHEMA, "diverged", 1)
    first = tree["first_difference"]
    wanted = {"rung": "forward", "step": 0, "module": "encoder.layers.1", "call": 0, "tensor": "output"}
    assert {key: first[key] for key in wanted} == wanted
    assert (len(first["index"]), first["born_in"]) == (3, "encoder.layers.1")
    assert isinstance(first["reference"], float)
    assert isinstance(first["candidate"], float)
    assert [rung["name"] for rung in tree["rungs"]] == NAMES
    counts = {"name", "status", "compared", "differing", "missing_reference", "missing_candidate"}
    assert all(counts <= set(rung) for rung in tree["rungs"])
    assert tree["tolerance"] == {"kind": "fixed", "atol": 1e-5, "rtol": 1e-5}
    assert tree["reference"]["recording"]["trainer"]["name"] == "nemo"
    assert any(call["relation"] == "born here" for call in tree["calls"])
    assert len(tree["differences"]) == sum(len(r.differences) for r in diverged.rungs if r.name != "steps")


def test_identical_has_no_first_difference(reference: Path) -> None:
    tree = as_tree(judge(reference, reference))
    assert (tree["first_difference"], tree["differences"], tree["calls"]) == (None, [], [])


def test_nan_and_infinity_are_texts(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/loss.pt", lambda loss: loss.update(loss=torch.tensor(-math.inf)))
    first = parse(render_json(judge(reference, copy)))["first_difference"]
    assert first["candidate"] == "-inf"
    assert strict({"a": (math.nan, math.inf, Path("x"))}) == {"a": ["nan", "inf", "x"]}


def test_reports_are_the_same_text_for_the_same_comparison(reference: Path, copy: Path) -> None:
    edit_index(copy, lambda index: index.update(seed=7))
    texts = {render_json(judge(reference, copy)) + render_markdown(judge(reference, copy)) for _ in range(2)}
    assert len(texts) == 1


# --- files and terminal -----------------------------------------------------------------------------------------------


def test_files_are_whole_and_alone(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report"
    path = write_reports(judge(reference, reference), out)
    assert path == out / "report.md"
    assert sorted(entry.name for entry in out.iterdir()) == ["report.json", "report.md"]
    assert path.stat().st_mode & 0o044 == 0o044 & ~_umask()


def test_a_failed_write_keeps_the_earlier_report(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.md").write_text("earlier")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left"):
        write_reports(judge(reference, reference), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "earlier"


def test_the_terminal_shows_the_same(diverged: Comparison) -> None:
    stream = io.StringIO()
    print_summary(diverged, Path("outputs/report/report.md"), stream)
    text = stream.getvalue()
    assert text.startswith("nest-ssl 0.1.0 parts from NeMo 3.0.0 at step 0, forward, encoder.layers.1, output\n")
    assert "first difference: step 0, forward, encoder.layers.1, output at [" in text
    assert text.rstrip().endswith("report: outputs/report/report.md")
    assert "\x1b" not in text


def test_wording() -> None:
    assert (number(1234567), number(0.18231764435768127), number(True), number(math.nan)) == (
        "1,234,567", "0.182317644", "True", "nan",
    )  # fmt: skip
    assert (number("0123456789abcdef" * 4), number("x" * 500)) == ("0123456...", "x" * 120 + "...")
    assert (small(0.0041), small(78412), small(None)) == ("4.1e-03", "78,412", "-")
    assert (steps_text([0]), steps_text([0, 1, 2]), steps_text([0, 9])) == ("step 0", "steps 0 to 2", "steps 0, 9")
    assert cell("a|b\nc") == "a\\|b c"
    assert table(["a", "b"], [[1, 2]], right=1) == ["| a | b |", "| --- | --: |", "| 1 | 2 |", ""]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
