"""The page says what the results hold, and results survive being written and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.bench.document import SECTIONS, page
from nest_ssl.bench.results import Machine, Part, Results, load_results
from nest_ssl.bench.run import MEASURED, RECORDED, faults, run_parts
from nest_ssl.bench.trainings import Bench
from nest_ssl.cli.gpu import PARTS
from nest_ssl.report.render.markdown import render_markdown

ROOT = Path(__file__).resolve().parents[2]
MACHINE: dict[str, Any] = {"card": "Card X1", "driver": "580.1", "cuda": "13.0", "cudnn": 91900, "torch": "2.11",
                           "numpy": "2.5", "python": "3.12", "cores": 16, "commit": "abcdef0123"}  # fmt: skip
COMPARED = {"reference": "NeMo 3.0.0", "candidate": "nest-ssl", "verdict": "identical", "tensors": 1234,
            "tensors_same": 1234, "first": None, "settings": "size=tiny", "rungs": {}, "largest": {}}  # fmt: skip
TIMES = {"forward_ms": 30.0, "backward_ms": 50.0, "optimizer_ms": 10.0}
RUNGS = {name: ["not judged", 3] for name in ("initial_weights", "draws", "forward", "loss", "gradients", "weights")}
ROWS: dict[str, list[dict[str, Any]]] = {
    "parity": [{"name": "tiny, quick", **COMPARED}, {"name": "tiny, graphs", **COMPARED, "replayed": 7}],
    "generator": [{"name": "size=tiny", "generator": "torch_cuda", "calls": [9, 9], "same": True, "parted": None,
                   "kinds": {"dropout": [8, 32]}}],
    "resume": [{"name": "stopped", "values": 1201, "differing": 0, "first": [], "generators": ["torch_cuda"]},
               {"name": "from it", **COMPARED}],
    "cpu-gpu": [{"name": "as it is", **COMPARED, "rungs": {"batch": ["identical", 0], **RUNGS},
                 "largest": {"forward": 2e-6}}],
    "explain": [{"name": "a fault", "size": "size=tiny", "planted": "scale", "verdict": "diverged",
                 "expected": "diverged", "born": ["forward encoder"], "planted_in": ["forward encoder"],
                 "largest_floors": 4.0, "tensors": 900, "tensors_same": 800,
                 "gathered": {"floor": 3.2, "float64": "no time"}}],
    "repeat": [{"name": "free", "side": "nemo", "times": 5, "outputs": [96, 0, []], "output_gradients": [79, 1, ["x"]],
                "parameter_gradients": [88, 2, ["conv.0.weight", "y"]], "largest": 1e-7}],
    "sync": [{"name": "one step", "side": "nemo", "forward": [["nemo/a.py:3", 2], ["nemo/b.py:4", 1]],
              "backward": [["nemo/c.py:5", 6]], "not_repeatable": ["cumsum_cuda"]}],
    "speed": [{"name": "limits", "matrix": 8192, "fp32_tflops": 50.0, "tf32_tflops": 400.0, "bf16_tflops": 800.0,
               "pageable_gbs": 8.0, "pinned_gbs": 50.0},
              {"name": "arithmetic", "side": "nemo", "batch": [8, 16.0], "flops": 1e12},
              {"name": "arithmetic", "side": "nest", "batch": [8, 16.0], "flops": 1e12},
              {"name": "fp32", "batch": [8, 16.0], "nemo": {"step_ms": 100.0, "peak_bytes": 2**34, **TIMES},
               "nest": {"step_ms": 80.0, "peak_bytes": 2**33, **TIMES}, "graphs": {"error": "capture failed"},
               "replayed": {"step_ms": 50.0, "peak_bytes": 2**33, **TIMES},
               "fast": {"step_ms": 25.0, "peak_bytes": 2**33, **TIMES}},
              {"name": "fp32, any kernel", "batch": [8, 16.0], "nemo": {"step_ms": 80.0, "peak_bytes": 2**34, **TIMES},
               "nest": {"step_ms": 80.0, "peak_bytes": 2**33, **TIMES}},
              {"name": "parts", "side": "nemo", "run": "32", "batch": [8, 16.0], "parts": {"mask": [2.0, 1.0]}},
              {"name": "parts", "side": "nest", "run": "32", "batch": [8, 16.0], "parts": {"mask": [0.5, 0.4]}},
              {"name": "bf16-mixed", "batch": [32, 16.0], "error": "no time was left"}],
    "recorder": [{"name": "limits", "matrix": 8192, "fp32_tflops": 50.0, "tf32_tflops": 400.0, "bf16_tflops": 800.0,
                  "pageable_gbs": 8.0, "pinned_gbs": 50.0, "write_gbs": 1.5},
                 {"name": "modules", "batch": [8, 16.0], "bare": 0.2, "seconds": 0.5, "first": 0.7, "written": 9.0,
                  "cpu": 20.0, "peak": 2**33, "bytes": 5 * 10**9, "waits": [["nest_ssl/a.py:3", 2]]},
                 {"name": "digest", "batch": [8, 16.0], "error": "no time was left"}],
}  # fmt: skip
SAID = {
    "parity": "| tiny, quick | NeMo 3.0.0 | nest-ssl | identical | 1,234 | 1,234 |",
    "generator": "`size=tiny`: 9 and 9 draws from torch_cuda, the same, draw by draw.",
    "resume": "stopped: 0 of 1,201 values of the last checkpoint differ. Generators in it: torch_cuda.",
    "cpu-gpu": "| as it is | 3 | same | 3 | 3, 2e-06 | 3 | 3 | 3 |",
    "explain": "| tiny | scale | diverged | `forward encoder` | 4 | 800 of 900 | floor 3 s, no float64 |",
    "repeat": "| free | nemo | 0 of 96 | 1 of 79 | 2 of 88 | 1e-07 |",
    "sync": "| nemo | 3 | 6 |",
    "speed": "| fp32 | 8 x 16 s | 100.0 | 80.0 | 0.80 | 50.0 | 0.50 | 25.0 | 0.25 |  |  |",
    "recorder": "| modules, 8 x 16 s | 5.00 | 0.200 | 0.70 | 0.500 | 2.50 | 0.100 | 9.0 | 20.0 | 8.0 |",
}


def results(rows: dict[str, list[dict[str, Any]]]) -> Results:
    parts = {
        name: Part(machine=Machine(**MACHINE), day="2026-01-02", seconds=12.3, command=f"make {name}", rows=given)
        for name, given in rows.items()
    }
    return Results(schema="nest-ssl-gpu/1", parts=parts)


def test_every_part_has_its_section() -> None:
    assert set(PARTS) == set(SECTIONS) == {*RECORDED, *MEASURED} == set(ROWS)


@pytest.mark.parametrize("part", ROWS)
def test_a_section_says_what_was_found(part: str) -> None:
    text = render_markdown(page(results({part: ROWS[part]})))
    assert SAID[part] in text and text.count("Not run yet.") == len(ROWS) - 1
    assert "Card X1 (driver 580.1, CUDA 13.0, cuDNN 91900), torch 2.11" in text
    assert f"2026-01-02 at commit abcdef0, 12 s: `make {part}`" in text


def test_what_could_not_be_had_is_said() -> None:
    text = render_markdown(page(results(ROWS)))
    assert "- bf16-mixed, 32 x 16 s: not had (no time was left)" in text
    assert "fp32, 8 x 16 s: nemo +25.0 %, nest +0.0 %" in text  # what deterministic kernels cost
    assert "- digest, 8 x 16 s: not had (no time was left)" in text and "- modules, 2 times: `nest_ssl/a.py:3`" in text
    assert "- fast, graphs, fp32, 8 x 16 s: not had (capture failed)" in text
    assert "| fp32 | 8 x 16 s | 20 % | 16.0 | 25 % | 8.0 | 40 % | 8.0 | 10 % | 8.0 |" in text
    assert "- tiny, graphs: 7 steps replayed" in text
    assert "| 32 | 8 x 16 s | mask | 2.0 | 0.5 | 1.0 | 0.4 |" in text


def test_results_come_back_and_parts_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    assert load_results(path).parts == {}
    results(ROWS).save(path)
    loaded = load_results(path)
    assert loaded == results(ROWS)


@pytest.mark.parametrize(
    "edit",
    [
        lambda tree: tree.update(schema="nest-ssl-gpu/2"),
        lambda tree: tree.update(x=1),
        lambda tree: tree["parts"]["parity"].pop("machine"),
        lambda tree: tree["parts"]["parity"]["rows"][0].pop("verdict"),
        lambda tree: tree["parts"]["speed"]["rows"][0].update(fp32_tflops="many"),
        lambda tree: tree["parts"]["sync"]["rows"][0].update(forward=3),
        lambda tree: tree["parts"]["repeat"]["rows"].append({}),
    ],
)
def test_what_is_no_result_is_refused_before_anything_runs(tmp_path: Path, edit: Callable[[Any], object]) -> None:
    path, bench = tmp_path / "gpu.json", Bench({}, "cpu", "tiny", tmp_path)
    results(ROWS).save(path)
    assert run_parts(bench, [], path, tmp_path / "gpu.md") == 0
    tree = json.loads(path.read_text())
    edit(tree)
    for text in (json.dumps(tree), json.dumps(tree)[:-3]):
        path.write_text(text)
        with pytest.raises(UserError, match=f"not results of this command: {path}"):
            run_parts(bench, [], path, tmp_path / "gpu.md")


@pytest.mark.parametrize(
    ("part", "change", "fault"),
    [
        ("parity", {"verdict": "equivalent", "first": "step 0: x"}, "tiny, quick: differs (step 0: x)"),
        ("parity", {"replayed": 0}, "tiny, quick: nothing was replayed"),
        ("generator", {"same": False, "parted": "draw 3"}, "size=tiny: differs (draw 3)"),
        ("explain", {"born": []}, "a fault: diverged, born nothing in place of forward encoder"),
        ("explain", {"verdict": "equivalent"}, "a fault: equivalent, born forward encoder in place of forward encoder"),
        ("generator", {"calls": [0, 0], "kinds": {}}, "size=tiny: nothing was drawn from torch_cuda"),
        ("resume", {"differing": 2, "first": ["state_dict.x"]}, "stopped: differs (['state_dict.x'])"),
        ("repeat", {"name": "deterministic"}, "nemo does not repeat with deterministic kernels"),
        ("sync", {"error": "out of memory"}, "one step: out of memory"),
    ],
)
def test_what_must_not_differ_is_a_fault(part: str, change: dict[str, Any], fault: str) -> None:
    assert faults(part, ROWS[part]) == []
    first, *others = ROWS[part]
    assert faults(part, [{**first, **change}, *others]) == [fault]


def test_the_page_that_is_committed_is_the_one_of_its_results() -> None:
    """Nothing in it was written by hand but the remarks, which are in the results."""
    text = render_markdown(page(load_results(ROOT / "docs" / "gpu.json")))
    assert (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8") == text
