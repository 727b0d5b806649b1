"""Two trainers at once: whoever comes second says whether they are one experiment, as if the other had recorded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import side_by_side
from train_nest import NEST

from nest_ssl.base.steps import parse_steps
from nest_ssl.run import same_experiment
from nest_ssl.run.command_line import read_command_line
from nest_ssl.run.preflight import check_data
from nest_ssl.run.same_experiment import MEETING, Plan, leave, other_experiment

OTHERS = ["seed=7", "model.optim.lr=1.0", "save_steps=0,1", "batches=2", "model.train_ds.min_duration=0.2"]


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where both record; their meeting is a folder of its own."""
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv(MEETING, str(tmp_path / "meeting"))
    return tmp_path


def said(out: Path, name: str, *words: str) -> list[str]:
    """What a trainer says of the other one before it trains."""
    settings = ["size=tiny", "save_steps=0", "batches=1", f"output_dir={out / name}", *words]
    cfg = read_command_line(name, settings)
    _, data, *_ = check_data(NEST, cfg)
    return other_experiment(out / name, name, cfg, parse_steps(cfg.save_steps), data)


def test_the_script_and_the_trainers_mean_the_same_folder() -> None:
    assert side_by_side.MEETING == MEETING
    assert side_by_side.NAMES == (same_experiment.FIRST, same_experiment.SECOND)


@pytest.mark.parametrize("order", [("nemo", "nest"), ("nest", "nemo")], ids=lambda order: order[0])
def test_whoever_comes_second_names_what_differs(out: Path, order: tuple[str, str]) -> None:
    words = {"nemo": [], "nest": OTHERS}
    assert said(out, order[0], *words[order[0]]) == []
    *lines, more = said(out, order[1], *words[order[1]])
    end = ": these are two experiments, and comparing the two ends with exit code 4"
    assert len(lines) == same_experiment.SHOWN and all(line.endswith(end) for line in lines)
    assert lines[0] == f"seed is 42 in nemo and 7 in nest{end}" and more.endswith("more such settings")


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        ([], ""),
        (["operators=true", "numerics=fast"], ""),
        (["save_steps=0,1"], "steps is 0 in nemo and 0, 1 in nest"),
        (["seed=7"], "seed is 42 in nemo and 7 in nest"),
        (["save_steps=all"], ""),  # how many there are is not known yet
        (["record=digest", "save_steps=0,1"], ""),
        (["model.train_ds.manifest_filepath=data/dummy_ssl/val_manifest.json"], "data.train."),
        (["nemo=2.7"], "generation is 3.0 in nemo and 2.7 in nest"),
    ],
)
def test_only_what_makes_another_experiment_is_named(out: Path, words: list[str], differs: str) -> None:
    assert said(out, "nemo") == []
    lines = said(out, "nest", *words)
    assert lines[0].startswith(differs) if differs else lines == []
    assert len(lines) == len({*lines})


def test_a_recording_of_an_earlier_pair_is_not_looked_at(out: Path) -> None:
    (out / "nemo").mkdir()
    (out / "nemo" / "recording.json").write_text("not read")
    assert said(out, "nest") == [] and said(out, "nemo") == []


def test_ranks_leave_no_plan(out: Path) -> None:
    """Each records into a folder of its own name, and none speaks for all."""
    cfg = read_command_line("nest", ["size=tiny"])
    assert other_experiment(out / "rank_0", "nest", cfg, frozenset({0}), check_data(NEST, cfg)[1]) == []
    assert list((out / "meeting").iterdir()) == []


def test_of_two_that_come_at_once_one_finds_the_other(tmp_path: Path) -> None:
    nothing = {"config": {}, "seed": 1, "generation": {"name": "3.0"}, "data": {}, "steps": None}
    plans = [Plan.model_validate({"name": name, **nothing}) for name in ("nemo", "nest")]
    with ThreadPoolExecutor(2) as pool:
        for number in range(100):
            (meeting := tmp_path / str(number)).mkdir()
            found = list(pool.map(lambda plan, folder=meeting: leave(plan, folder), plans))
            assert found in ([None, plans[0]], [plans[1], None])


def test_what_json_has_no_word_for_stays_what_it_is(tmp_path: Path) -> None:
    config = {"a": {"b": float("inf"), "c": 1.0, "d": 1, "e": None, "f": ["x", True]}, "g": 1e-6}
    nothing = {"seed": None, "generation": {"name": "3.0"}, "data": {}, "steps": [0, 2]}
    plans = [Plan.model_validate({"name": name, "config": config, **nothing}) for name in ("nemo", "nest")]
    assert leave(plans[0], tmp_path) is None
    found = leave(plans[1], tmp_path)
    assert found is not None and repr(found) == repr(plans[0])
