"""Rung 1: what must be the same, and what may differ."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nest_ssl.compare.settings import Change, count_leaves, typed_diff, without
from tests.compare.builder import edit_config, edit_index, first, judge

Edit = Callable[[dict[str, Any]], Any]


def set_at(*path: Any) -> Edit:
    """An edit that sets the value at a path: ``set_at("seed", 7)``."""

    def edit(tree: dict[str, Any]) -> None:
        for key in path[:-2]:
            tree = tree.setdefault(key, {})
        tree[path[-2]] = path[-1]

    return edit


@pytest.mark.parametrize(
    ("edit", "setting", "values"),
    [
        (set_at("seed", 7), "seed", (42, 7)),
        (set_at("world_size", 2), "world_size", (1, 2)),
        (set_at("flags", "matmul_tf32", True), "flags.matmul_tf32", (False, True)),
        (set_at("threads", "torch", 64), "threads.torch", (1, 64)),
        (set_at("packages", "torch", "2.0.0"), "versions.torch", (None, "2.0.0")),
        (set_at("cuda", "runtime", "13.0"), "versions.cuda", (None, "13.0")),
        (set_at("cuda", "cudnn", 92000), "versions.cudnn", (None, 92000)),
        (set_at("device", "name", "another"), "device.name", ("a processor", "another")),
        (set_at("device", "type", "cuda"), "device.type", ("cpu", "cuda")),
        (set_at("data", "train", "audio", "a.wav", "99"), "data.train.audio.a.wav", ("11", "99")),
        (set_at("data", "train", "manifests", []), "data.train.manifests.0", (None, "absent")),
    ],
)
def test_another_experiment(reference: Path, copy: Path, edit: Edit, setting: str, values: tuple[Any, Any]) -> None:
    edit_index(copy, edit)
    comparison = judge(reference, copy, steps=[0])
    assert (comparison.verdict, comparison.exit_code) == ("inconclusive", 4)
    assert first(comparison) == ("contract", None, None, None, setting)
    assert comparison.first is not None
    assert comparison.first.candidate == values[1]
    assert values[0] is None or comparison.first.reference == values[0]


@pytest.mark.parametrize(
    "edit",
    [
        set_at("trainer", {"name": "nest", "package": "nest-ssl", "version": "9"}),
        set_at("packages", "numpy", "1.0"),
        set_at("packages", "only-here", "1.0"),
        set_at("python", "3.12.1"),
        set_at("git", {"commit": "abc", "dirty": True}),
        set_at("command", ["train.py"]),
        set_at("host", "system", "Windows"),
        set_at("environment", {"OMP_WAIT_POLICY": "active"}),
        set_at("sources", {}),
        set_at("container", {"image": "sha256:12", "base": "a base", "locks": {"torch-cpu.lock": "34"}}),
        set_at("cuda", "driver", "580.65.06"),
    ],
)
def test_the_same_experiment(reference: Path, copy: Path, edit: Edit) -> None:
    edit_index(copy, edit)
    assert judge(reference, copy, steps=[0]).verdict == "identical"


@pytest.mark.parametrize(
    ("edit", "setting"),
    [
        (set_at("model", "optim", "lr", 0.02), "config.model.optim.lr"),
        (set_at("model", "encoder", "d_model", 8.0), "config.model.encoder.d_model"),
        (set_at("model", "encoder", "d_model", "8"), "config.model.encoder.d_model"),
        (set_at("model", "encoder", "new", None), "config.model.encoder.new"),
        (lambda config: config["model"].pop("optim"), "config.model.optim"),
    ],
)
def test_another_config(reference: Path, copy: Path, edit: Edit, setting: str) -> None:
    edit_config(copy, edit)
    comparison = judge(reference, copy, steps=[0])
    assert comparison.exit_code == 4
    assert first(comparison)[-1] == setting


def test_a_resumed_run_is_another_experiment_than_one_from_the_start(reference: Path, copy: Path) -> None:
    edit_index(copy, lambda index: index.update(resumed_from={"checkpoint": "a.ckpt", "batches": 1200, "steps": 600}))
    comparison = judge(reference, copy, steps=[0])
    assert comparison.exit_code == 4 and comparison.first is not None
    assert first(comparison)[-1] == "resumed_from"
    assert (comparison.first.reference, comparison.first.candidate) == ("not resumed", "after batch 1,200")
    assert judge(copy, copy, steps=[0]).verdict == "identical"


@pytest.mark.parametrize("key", ["output_dir", "save_steps", "overwrite", "exp_manager"])
def test_where_a_run_writes_does_not_matter(reference: Path, copy: Path, key: str) -> None:
    edit_config(copy, set_at(key, "elsewhere"))
    assert judge(reference, copy, steps=[0]).verdict == "identical"


def test_steps_on_one_side_only(reference: Path, make: Callable[..., Path]) -> None:
    candidate = make(steps=(0,))
    comparison = judge(reference, candidate)
    assert comparison.exit_code == 4
    assert first(comparison)[:1] == ("contract",)
    assert judge(reference, candidate, steps=[0]).verdict == "identical"


def test_the_other_rungs_are_still_compared(reference: Path, make: Callable[..., Path]) -> None:
    comparison = judge(reference, make(index={"seed": 7}))
    assert comparison.exit_code == 4
    assert comparison.rung("weights").status == "identical"
    assert comparison.rung("weights").compared > 0


def test_other_packages_are_noted(reference: Path, copy: Path) -> None:
    edit_index(copy, set_at("packages", "numpy", "1.0"))
    assert any("numpy" in note and "against 1.0" in note for note in judge(reference, copy, steps=[0]).notes)


NEMO_IMAGE = {"image": "1", "name": "nemo", "base": "b", "locks": {"torch-cpu.lock": "a", "nemo-cpu.lock": "b"}}
NEST_IMAGE = {"image": "2", "name": "nest", "base": "b", "locks": {"torch-cpu.lock": "a", "nest-cpu.lock": "c"}}


@pytest.mark.parametrize(
    ("reference_image", "candidate_image", "notes"),
    [
        (NEMO_IMAGE, NEST_IMAGE, []),
        (None, NEST_IMAGE, ["Container: none against a container."]),
        (NEMO_IMAGE, {**NEST_IMAGE, "base": "c"}, ["Image base: b against c."]),
        (NEMO_IMAGE, {**NEST_IMAGE, "locks": {"torch-cpu.lock": "d"}}, ["Image locks.torch-cpu.lock: a against d."]),
    ],
)
def test_images_of_another_make_are_noted(
    make: Callable[..., Path], tmp_path: Path, reference_image: Any, candidate_image: Any, notes: list[str]
) -> None:
    reference, candidate = make(index={"container": reference_image}), tmp_path / "candidate"
    shutil.copytree(reference, candidate)
    edit_index(candidate, set_at("container", candidate_image))
    comparison = judge(reference, candidate)
    assert comparison.verdict == "identical"
    assert [note for note in comparison.notes if note.startswith(("Container", "Image"))] == notes


def test_the_most_telling_setting_comes_first(reference: Path, copy: Path) -> None:
    edit_index(copy, lambda index: index.update(seed=7, threads={"torch": 2}))
    assert first(judge(reference, copy, steps=[0]))[-1] == "seed"


# --- typed differences ------------------------------------------------------------------------------------------------


def test_types_tell_settings_apart() -> None:
    values = [1, 1.0, "1", True, None]
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            assert bool(typed_diff({"a": one}, {"a": other})) is (i != j)


def test_an_inserted_item_is_one_change() -> None:
    assert typed_diff({"a": [1, 2, 3]}, {"a": [1, 9, 2, 3]}) == [Change("a.1", "absent", 9)]


def test_nan_is_the_same_setting() -> None:
    assert not typed_diff({"a": float("nan")}, {"a": float("nan")})


def test_leaves_are_counted_and_paths_left_out() -> None:
    tree = {"a": {"b": 1, "c": [1, 2]}, "d": {}}
    assert count_leaves(tree) == 4
    assert without(tree, frozenset({"a.b", "d"})) == {"a": {"c": [1, 2]}}
