"""The benchmarks' page from hand-made rows, and one round of the real thing, by ratio."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from nest_ssl.base.errors import UserError
from nest_ssl.bench import cpu, cpu_page, profiled, targets
from nest_ssl.bench.trainings import Bench, Side
from nest_ssl.bench.workers import SWITCHES
from nest_ssl.cli import bench as cli
from nest_ssl.cli.bench import main
from nest_ssl.report.render.markdown import render_markdown


def row(name: str, ratio: float) -> dict[str, object]:
    return {"name": name, "batch": [2, 3.0], "rounds": 3, "step_ms": [40.0, ratio, ratio - 0.1, ratio + 0.1]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "larg"], "no such case.*Did you mean large"),
        (["--quick", "--only", "Tiny"], "no such case.*Did you mean tiny"),
        (["--quick", "--only", "8"], "no such case: '8'. One of: tiny; large, 3 of 17 layers; curve; "),
        (["--quick", "--only", "large, fast"], "no such case: 'large, fast'. Give --targets."),
        (["--nemo-python", "/nowhere/python"], "no such Python: /nowhere/python"),
        (["--rounds", "0"], "0 is no number of rounds"),
        (["--only", "loader"], "no NeMo in this Python: .*/python"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--quick"], ["loader", "comparer", "recorder", "start"]),
        (["--targets"], ["profile", "loader", "comparer", "recorder", "start"]),
        (["--quick", "--only", "curve"], ["curve"]),
    ],
)
def test_a_quick_run_leaves_out_what_takes_minutes(
    arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(cli, "HAS_NEMO", "")
    monkeypatch.setattr(cli, "measure", lambda bench, cases, parts, *_: asked.append(parts))
    main([*arguments, "--out", str(tmp_path)])
    assert asked == [parts]


def test_what_is_timed_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without make too, where nothing has set it: the page says one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(UserError, match="no such"):
        main(["--only", "parity"])
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_the_page_has_every_row_and_a_plot_for_a_curve(tmp_path: Path) -> None:
    results = cpu_page.load(tmp_path / "benchmarks.json")
    first = [row("tiny", 0.9), row("1 layers", 0.8), row("4 layers", 0.7), {"name": "large", "error": "no memory"}]
    results["steps"] = cpu_page.merge(first, [row("tiny", 0.5)])
    recorded = {"seconds": 3.0, "written": 5.0, "cpu": 6.0, "thread": 2.5, "bare": 1.0, "bytes_alone": 2.0}
    results["comparer"] = [{"name": "equal", "gbs": 2.5, "own_bytes": 2e8}, {"name": "cmp", "gbs": 2.0}]
    results["recorder"] = [{"name": "modules", "bytes": 2e6, "bare_clock": 1.1, "peak": 5e9, **recorded}]
    results["recorder"].append({"name": "before", "bytes": 2e6, "bare_clock": 1.1, **recorded})
    results["recorder"].append({"name": "recorded steps", "each": [[0.1, 2e6, 3e8], [0.2, 4e6, 5e8]]})
    results["start"] = [
        {"name": "nest-ssl --help", "seconds": 0.05},
        {"name": "make align", "seconds": 50, "clock": 29},
        {"name": "make nothing", "seconds": 1, "clock": 1, "error": "exit code 2"},
    ]
    results["loader"] = {"item_ms": [50.0, 5.0], "stages": {"reading audio": [4.0, 2.0]}, "same": True}
    cpu_page.save(results, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| tiny | 2 x 3 s | 3 | 0.50 (0.40 to 0.60) |" in text and "| tiny | 2 x 3 s | 3 | 0.90" not in text
    assert "large: not had (no memory)" in text and "| modules | 2.0 | 1.1 | 3 | 5 | 1 | 2.5 | 6 | 2 | 5,000 |" in text
    assert "| before | 2.0 | 1.1 | 3 | 5 | 1 | 2.5 | 6 | 2 |  |" in text
    assert "| `make align` | 50.00 | 29.00 |" in text and "| reading audio | 4.00 | 2.00 | 0.50 |" in text
    assert "| 1 | 2.0 | 0.1 | 300 |" in text and "| 2 | 4.0 | 0.2 | 500 |" in text
    assert "| equal | 2.50 | 200 |" in text and "| cmp | 2.00 |  |" in text
    assert "| `make nothing` |  |  |" in text and "make nothing: not had (exit code 2)" in text
    assert "the same bits on both sides: 20 and 200 items a second" in text
    assert "benchmarks-layers.svg" in text and "benchmarks-s.svg" not in text
    assert (tmp_path / "benchmarks-layers.svg").read_text().startswith("<svg")
    assert cpu_page.load(tmp_path / "benchmarks.json") == results


def test_a_target_is_met_or_the_reason_is_said() -> None:
    large = {
        "name": "large",
        "batch": [8, 16.0],
        "step_ms": [1.0, 0.9, 0.7, 1.0],
        "user_ms": [1.0, 0.75, 0.7, 0.9],
        "peak_bytes": [6e9, 0.61, 0.6, 0.7],
    }
    recorded = [
        {"name": f"digest, {size}", "seconds": 2.6, "bare_clock": bare} for size, bare in (("a", 1.0), ("b", 2.0))
    ]
    results = {"steps": [large], "recorder": recorded, "start": [], "loader": {"error": "no memory"}}
    text = "".join(render_markdown(list(cpu_page.page(results))))
    assert "| exact: a step's own time, large, 8 x 16 s, by NeMo's | 0.75 | 0.75 | yes |" in text
    assert "| exact: memory, large, 8 x 16 s, by NeMo's | 0.6 | 0.61 | no |" in text
    reasons = [line for line in text.splitlines() if line.startswith("- ")]
    assert reasons[0].startswith("- exact: memory") and reasons[1] == "- loader: not had (no memory)"
    assert "take 4.19 GB, and the target leaves 4.09. Of activations" in reasons[0] and len(reasons) == 2
    assert "by bare | 1.3 | 1.30 | yes |" in text
    assert "loader: CPU time of an item with noise of 30 s, by NeMo's | 0.2 | not measured |  |" in text


def test_a_recorded_step_is_held_against_a_bare_one_and_against_writing() -> None:
    """Of the largest model: without state and with it, and until written with the step itself and without."""
    levels = {"boundaries without state": (10.5, 11.0), "boundaries": (12.0, 14.0), "modules": (15.0, 25.0)}
    recorder = [
        {
            "name": f"{level}, {size}",
            "seconds": seconds * times,
            "written": written,
            "bare_clock": 10.0,
            "bytes_alone": 5.0,
        }
        for size, times in (("tiny", 9.0), ("large", 1.0))
        for level, (seconds, written) in levels.items()
    ]
    found = {target.what: value for target, value in targets.judged({"recorder": recorder}) if value is not None}
    assert found == {
        "recorder: a step with boundaries, loss and gradients, by bare": 1.05,
        "recorder: the same with weights and the optimizer's state, by bare": 1.2,
        "recorder: a step with all tensors until written, by writing as many bytes": 5.0,
        "recorder: the same less a bare step, by writing as many bytes": 3.0,
    }


def test_a_reason_says_what_the_row_says() -> None:
    """So that it cannot say that the step is mostly products where they are half of it."""
    numbers = {
        "step_ms": [1100.0, 0.9],
        "user_ms": [1000.0, 1.06],
        "products_ms": [480.0, 0.5],
        "optimizer_ms": [200.0, 0.83],
    }
    row = {"name": "large", "batch": [2, 3.0], **numbers, "forward_ms": [400.0, 1.11], "backward_ms": [400.0, 1.05]}
    of = {target.what: target for target in targets.TARGETS}["exact: a step's own time, large, 2 x 3 s, by NeMo's"]
    assert of.found({"steps": [row]}) == 1.06
    profile = {"name": "a model", "batch": [2, 3.0]}
    profile["exact"] = {"kinds": {"copies": {"forward": 1.0}, "products": {"forward": 1.0, "backward": 2.0}}}
    said = (
        "of the port's step: products alone, of all tokens, at the rate of a large one, 48%; the optimizer, 20%; "
        "forward takes 1.11 of NeMo's time; backward takes 1.05 of NeMo's time. "
    )
    assert of.why({"steps": [row]}).startswith(f"{said}Branches as one function")
    of_profile = "In the profile of a model it is: products, 75%; copies, 25%. "
    other = {"name": "another", "batch": [8, 16.0], "error": "no memory"}
    assert of.why({"steps": [row], "profile": [other, profile]}).startswith(f"{said}{of_profile}Branches as one")


def test_every_target_is_on_the_page_and_a_missed_one_has_a_reason() -> None:
    results = {"steps": [], "recorder": [], "start": [], "comparer": [{"name": "equal", "gbs": 0.5}]}
    text = "".join(render_markdown(list(cpu_page.page(results))))
    assert all(f"| {target.what} | " in text for target in targets.TARGETS)
    assert "- comparer: seconds a GB that is equal, one core: not looked into." in text


def test_rows_of_another_day_or_commit_say_so() -> None:
    rows = [
        {**row("tiny", 0.9), "day": "2026-11-01, commit abc"},
        row("medium", 0.8),
        {**row("large", 0.7), "day": "x"},
    ]
    results = {"steps": rows, "recorder": [], "start": [], "machine": "a machine", "day": "x"}
    text = "".join(render_markdown(list(cpu_page.page(results))))
    assert "| tiny (2026-11-01, commit abc) |" in text and "| medium (an earlier commit) |" in text
    assert "| large | 2 x 3 s |" in text


def test_cases_with_the_same_nemo_are_timed_together() -> None:
    grouped = cpu.groups(cpu.TARGETS)
    assert [len(group) for group in grouped] == [2, 3, 1, 1] and {*chain(*grouped)} == {*cpu.TARGETS}
    assert max(len(group) for group in cpu.groups(cpu.FULL)) == 3


class NoWorker:
    """Answers at once, and keeps what it was started with."""

    started: ClassVar[list[tuple[str, ...]]] = []

    def __init__(self, bench: Bench, side: str, *words: str) -> None:
        self.started.append((side, *words))

    def ask(self, **order: object) -> dict[str, float]:
        return dict.fromkeys([*cpu.PARTS, "flops"], 1.0)

    def __enter__(self) -> NoWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("switch", [*SWITCHES, cpu.SDPA])
def test_what_is_switched_is_of_nemo_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    (case,) = [case for case in cpu.FULL if case.of_nemo == (switch,)]
    monkeypatch.setattr(cpu, "Worker", NoWorker)
    monkeypatch.setattr(NoWorker, "started", [])
    bench = Bench({}, "cpu", "tiny", tmp_path)
    (row,) = cpu.steps(bench, [replace(case, rounds=1)])
    assert NoWorker.started == [("nemo", switch), ("nest",)] and row["step_ms"][1] == 1.0


def test_what_is_measured_again_leaves_the_rest(tmp_path: Path) -> None:
    """Of a quick run the recorder's large rows are not, and where a trainer could not be had nothing is lost."""
    before = {"machine": "AMD, 2 cores, 9 GFLOP/s, torch 2", "day": "yesterday"}
    cpu_page.add(tmp_path, before, "steps", [row("tiny", 0.9), row("large", 0.7)])
    cpu_page.add(tmp_path, before, "start", [{"name": name, "seconds": 1.0, "clock": 1.0} for name in ("a", "b")])
    cpu_page.add(tmp_path, before, "loader", {"item_ms": [2.0, 1.0], "stages": {}, "same": True})
    now = {"machine": "AMD, 2 cores, 8 GFLOP/s, torch 2", "day": "today"}
    lost = {**{key: row("large", 0)[key] for key in ("name", "batch")}, "error": "no NeMo"}
    cpu_page.add(tmp_path, now, "steps", [row("tiny", 0.8), lost, {**lost, "name": "new"}])
    cpu_page.add(tmp_path, now, "start", [{"name": "b", "seconds": 2.0, "clock": 2.0}])
    cpu_page.add(tmp_path, now, "loader", {"error": "no NeMo"})
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| tiny | 2 x 3 s | 3 | 0.80 " in text and "| large (yesterday) | 2 x 3 s | 3 | 0.70 " in text
    assert "| `a` (yesterday) | 1.00 |" in text and "| `b` | 2.00 |" in text
    assert "500 and 1,000 items a second" in text and "new: not had (no NeMo)" in text
    cpu_page.add(tmp_path, {"machine": "Intel, 8 cores, 8 GFLOP/s, torch 2", "day": "today"}, "start", [])
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| large (yesterday, AMD, 2 cores) | " in text and "| tiny (AMD, 2 cores) | " in text


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(cpu, "comparer", None)
    with pytest.raises(FileExistsError):
        main(["--only", "comparer", "--out", str(tmp_path / "file")])


def test_losses_are_said_and_drawn(tmp_path: Path) -> None:
    nemo, fast = [5.0, 4.0, 2.0], [5.0, 4.0, 2.1]
    curve = {"losses": {"nemo": nemo, "exact": nemo, "fast": fast}, "settings": ["model.optim.lr=0.2"]}
    results = {**cpu_page.load(tmp_path / "benchmarks.json"), "curve": curve}
    cpu_page.save(results, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "3 of 3 are NeMo's to the last bit; in fast mode none is further from NeMo's than 5 % of it" in text
    drawn = (tmp_path / cpu_page.CURVE).read_text()
    assert drawn.count("<path") == 2 and ">5.00<" in drawn and ">2.00<" in drawn


def event(name: str, start: float, end: float, number: int = -1, within: float = 0.0) -> object:
    """An operator as torch's profiler has it; of its time, `within` is that of operators that it calls."""
    span, own = SimpleNamespace(start=start, end=end), end - start - within
    return SimpleNamespace(name=name, time_range=span, sequence_nr=number, self_cpu_time_total=own)


def test_a_step_is_taken_apart_by_phase_part_and_kind() -> None:
    of_backward = "autograd::engine::evaluate_function: "
    events = [
        event("aten::mm", -9000, -5000),  # before the step
        event("phase: forward", 0, 0),
        event("Optimizer.step#AdamW.step", 0, 21000, within=19000),
        event("part: quantizer", 0, 0),
        event("aten::topk", 0, 5000, 7),
        event("FeedForwardBranch", 5000, 9000, 7, within=3000),
        event("aten::addmm", 5000, 8000, 8),
        event("part: decoder and loss", 9000, 9000),
        event("aten::_log_softmax", 9000, 10000, 8),
        event("phase: backward", 12000, 12000),
        event(f"{of_backward}LogSoftmaxBackward0", 12000, 14000, 8, within=2000),
        event("aten::_log_softmax_backward_data", 12000, 14000),
        event(f"{of_backward}FeedForwardBranchBackward", 14000, 18000, 7, within=4000),
        event("aten::bernoulli_", 14000, 15000),
        event("aten::mm", 15000, 18000),
        event(f"{of_backward}torch::autograd::AccumulateGrad", 18000, 19000, within=1000),
        event("aten::clone", 18000, 19000),
        event("phase: optimizer", 19000, 19000),
        event("aten::mul_", 19000, 20000),
        event("phase: ", 21000, 21000),
        event("aten::mm", 22000, 30000),  # behind it
    ]
    found = profiled.totals(
        events, {"forward": 12.0, "backward": 3.5, "optimizer": 2.0}
    )  # others took half of backward
    assert found["parts"] == {
        "quantizer": {"forward": 5.0},
        "feed-forward": {"forward": 4.0, "backward": 2.0},
        "decoder and loss": {"forward": 1.0, "backward": 1.0},
        "rest": {"forward": 2.0, "backward": 0.5},
        "optimizer": {"optimizer": 2.0},
    }
    kinds = {kind: took for kind, took in found["kinds"].items() if any(took.values())}
    assert kinds == {
        "codes of the quantizer": {"forward": 5.0},
        "rest": {"forward": 1.0, "backward": 0.0},
        "matrix products": {"forward": 3.0, "backward": 1.5},
        "softmax": {"forward": 1.0, "backward": 1.0},
        "between operators (Python)": {"forward": 2.0, "backward": 0.0},
        "random draws": {"backward": 0.5},
        "copies and layout": {"backward": 0.5},
        "optimizer": {"optimizer": 2.0},
    }


def test_of_profiled_steps_each_number_is_the_median() -> None:
    steps = [{"kinds": {"draws": {"forward": took}}, "parts": {}} for took in (3.0, 1.0, 90.0)]
    steps[2]["kinds"]["draws"]["backward"] = 5.0
    assert profiled.medians(steps) == {"kinds": {"draws": {"forward": 3.0, "backward": 0.0}}, "parts": {}}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::baddbmm", "matrix products"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::_softmax_backward_data", "softmax"),
        ("aten::clamp_min_", "activations"),
        ("aten::fill_", "new memory, with its filling"),
        ("aten::masked_fill_", "other elementwise"),
        ("aten::max", "sums and searches"),
        ("aten::native_layer_norm_backward", "norms"),
        ("mm", "rest"),
        ("aten::what_is_new", "rest"),
    ],
)
def test_operators_are_of_a_kind_by_their_names(name: str, kind: str) -> None:
    assert profiled.kind_of(name) == kind


def test_the_largest_gains_are_said(tmp_path: Path) -> None:
    def took(search: float, products: float) -> dict[str, object]:
        kinds = {"search": {"forward": search}, "products": {"forward": products, "backward": 2 * products}}
        return {"kinds": {**kinds, "draws": {"forward": 10.0}}, "parts": {"all of it": {"forward": search + products}}}

    row = {"name": "large", "batch": [8, 16.0], "nemo": took(500, 400), "exact": took(30, 350), "fast": took(30, 300)}
    lost = {"name": "tiny", "batch": [2, 3.0], "nemo": took(1, 1), "error": "no memory"}
    results = {**cpu_page.load(tmp_path / "benchmarks.json"), "profile": [row, lost]}
    text = "".join(render_markdown(list(cpu_page.page(results))))
    assert (
        "large, 8 x 16 s, by operators: in all 620 ms less than NeMo's. Most is gained in: search, 500 before and 30 "
        "after; products, 1,200 before and 1,050 after." in text
    )
    assert "| products | 400 | 350 | 800 | 700 | 1,200 | 1,050 | 900 | 0.88 | 96 % |" in text
    assert "| search | 500 | 30 |  |  | 500 | 30 | 30 | 0.06 | 3 % |" in text
    assert "| all | 910 | 390 | 800 | 700 | 1,710 | 1,090 | 940 | 0.64 | 100 % |" in text
    assert "tiny: not had (no memory)" in text
    slower = {**row, "nemo": took(30, 350), "exact": took(31, 360)}
    text = "".join(render_markdown(list(cpu_page.page({**results, "profile": [slower]}))))
    assert "by operators: in all 31 ms more than NeMo's. Most is gained in: nothing." in text


@pytest.mark.slow
def test_steps_are_profiled(tmp_path: Path, python: str) -> None:
    """The port in NeMo's place; wide enough for its layers to be fused, and then looked into, which opens them."""
    port = Side(python, "scripts/train_nest.py")
    bench = Bench({"nemo": port, "nest": port}, "cpu", "tiny", tmp_path)
    wide = ("model.encoder.d_model=176", "model.encoder.n_layers=1", "model.encoder.subsampling_conv_channels=8")
    (row,) = cpu.profile(bench, [("tiny", "tiny", (4, 16.0), wide, False)])
    assert "error" not in row
    for trainer in cpu.TRAINERS:
        kinds, parts = row[trainer]["kinds"], row[trainer]["parts"]
        for part in ("feed-forward", "attention", "convolution", "subsampling and positions", "decoder and loss"):
            assert parts[part]["forward"] > 0 and parts[part]["backward"] > 0, (trainer, part)
        assert parts["features"].keys() == parts["quantizer"].keys() == {"forward"}
        for kind in ("matrix products", "convolutions", "softmax", "norms", "activations"):
            assert kinds[kind]["forward"] > 0 and kinds[kind]["backward"] > 0, (trainer, kind)
        assert kinds["random draws"]["forward"] > 0 and "backward" not in kinds["random draws"]
        assert parts["optimizer"]["optimizer"] > 0
        assert kinds["rest"]["forward"] < 0.2 * sum(took.get("forward", 0) for took in kinds.values())


@pytest.mark.slow
def test_a_gross_regression_is_seen_by_ratio(tmp_path: Path, python: str) -> None:
    """The port against itself is about as fast as itself; with three times the layers it is not."""
    port = Side(python, "scripts/train_nest.py")
    bench = Bench({"nemo": port, "nest": port}, "cpu", "tiny", tmp_path)
    same, more = (
        cpu.Case("tiny", "tiny", (2, 3.0), 1, 10, (), of_nemo) for of_nemo in ((), ("model.encoder.n_layers=12",))
    )
    even, faster = (row for group in cpu.groups([same, more]) for row in cpu.steps(bench, group))
    assert 0.5 < even["step_ms"][1] < 2 and 0.5 < even["peak_bytes"][1] < 2
    assert faster["step_ms"][1] < 0.5
