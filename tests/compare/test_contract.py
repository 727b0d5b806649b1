"""Rung 1: what must be the same, and what may differ."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nest_ssl.recording import layout as files
from tests.compare.builder import (
    DATA,
    edit_config,
    edit_index,
    edit_structure,
    edit_tensors,
    first,
    judge,
    noted,
    remove,
)

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
        (set_at("cuda", "runtime", "1.0"), "versions.cuda", (None, "1.0")),
        (set_at("cuda", "cudnn", 1), "versions.cudnn", (None, 1)),
        (set_at("data", "train", "audio", "a.wav", "99"), "data.train.audio.a.wav", ("11", "99")),
        (set_at("data", "train", "manifests", []), "data.train.manifests", (None, [])),
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
        set_at("trainer", {"name": "nest", "package": "nest-ssl", "version": "9", "class": "Model"}),
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


def test_hardware_is_no_setting(reference: Path, copy: Path) -> None:
    """Another card is noted; a device of another kind brings a build of its own, of the same version."""
    edit_index(copy, set_at("device", "name", "another"))
    comparison = judge(reference, copy, steps=[0])
    assert comparison.verdict == "identical"
    assert [note["path"] for note in noted(comparison, "hardware")] == ["device.name"]
    edit_index(copy, set_at("device", "type", "cuda"))
    edit_index(copy, set_at("cuda", "cudnn", 91900))
    comparison = judge(reference, copy, steps=[0])
    assert comparison.verdict == "identical"
    assert noted(comparison, "other_device") == [{"reference": "cpu", "candidate": "cuda"}]
    assert {note["path"] for note in noted(comparison, "hardware")} == {"device.name", "device.type", "versions.cudnn"}


@pytest.mark.parametrize(
    ("edit", "setting"),
    [
        (set_at("model", "optim", "lr", 0.02), "config.model.optim.lr"),
        (set_at("model", "encoder", "d_model", 8.0), "config.model.encoder.d_model"),
        (set_at("model", "encoder", "d_model", "8"), "config.model.encoder.d_model"),
        (set_at("model", "encoder", "new", None), "config.model.encoder.new"),
        (lambda config: config["model"].pop("optim"), "config.model.optim.lr"),
    ],
)
def test_another_config(reference: Path, copy: Path, edit: Edit, setting: str) -> None:
    edit_config(copy, edit)
    comparison = judge(reference, copy, steps=[0])
    assert comparison.exit_code == 4
    assert first(comparison)[-1] == setting


def resumed(target: Path) -> Path:
    """The recording of a run that went on after its first batch: what the reference holds from there on."""
    weights = torch.load(target / "step_0/parameter_weights.pt", weights_only=True)
    for path in sorted((target / "step_0").iterdir()):
        remove(target, f"step_0/{path.name}")
    edit_tensors(
        target, files.INITIAL_WEIGHTS, lambda initial: [initial[name].copy_(weights[name]) for name in initial]
    )
    edit_index(target, lambda index: [index[key].pop("0") for key in ("steps", "calls")])
    edit_index(target, lambda index: index.update(resumed_from={"checkpoint": "a.ckpt", "batches": 1, "steps": 1}))
    edit_index(target, lambda index: [entry.update(draws=7) for entry in index["ledger"]])  # drawn for nothing
    return target


@pytest.mark.parametrize("swapped", [False, True])
def test_a_resumed_run_is_compared_from_its_checkpoint_on(reference: Path, copy: Path, swapped: bool) -> None:
    remove(copy, "step_1/step_start.pt")  # it names a file of step 0
    sides = (resumed(copy), reference)
    comparison = judge(*(sides if swapped else sides[::-1]))
    assert (comparison.verdict, comparison.exit_code, comparison.steps) == ("identical", 0, [1]), first(comparison)
    assert noted(comparison, "resumed")[0]["step"] == 1


def test_a_resume_with_other_weights_is_seen(reference: Path, copy: Path) -> None:
    remove(copy, "step_1/step_start.pt")
    edit_tensors(resumed(copy), files.INITIAL_WEIGHTS, lambda weights: weights["decoder.bias"].add_(1))
    assert first(judge(reference, copy))[:3] == ("initial_weights", None, "decoder")


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
    versions = noted(judge(reference, copy, steps=[0]), "packages")[0]["versions"]
    assert versions["numpy"][1] == "1.0" and len(versions) == 1


NEMO_IMAGE = {"image": "1", "name": "nemo", "base": "b", "locks": {"torch-cpu.lock": "a", "nemo-cpu.lock": "b"}}
NEST_IMAGE = {"image": "2", "name": "nest", "base": "b", "locks": {"torch-cpu.lock": "a", "nest-cpu.lock": "c"}}


@pytest.mark.parametrize(
    ("reference_image", "candidate_image", "notes"),
    [
        (NEMO_IMAGE, NEST_IMAGE, []),
        (None, NEST_IMAGE, [{"reference": False, "candidate": True}]),
        (NEMO_IMAGE, {**NEST_IMAGE, "base": "c"}, [{"path": "base", "reference": "b", "candidate": "c"}]),
        (
            NEMO_IMAGE,
            {**NEST_IMAGE, "locks": {"torch-cpu.lock": "d"}},
            [{"path": "locks.torch-cpu.lock", "reference": "a", "candidate": "d"}],
        ),
    ],
)
def test_images_of_another_make_are_noted(
    make: Callable[..., Path], tmp_path: Path, reference_image: Any, candidate_image: Any, notes: list[Any]
) -> None:
    reference, candidate = make(index={"container": reference_image}), tmp_path / "candidate"
    shutil.copytree(reference, candidate)
    edit_index(candidate, set_at("container", candidate_image))
    comparison = judge(reference, candidate)
    assert comparison.verdict == "identical"
    assert noted(comparison, "container") + noted(comparison, "image") == notes


def test_the_most_telling_setting_comes_first(reference: Path, copy: Path) -> None:
    edit_index(copy, lambda index: index.update(seed=7, threads={"torch": 2}))
    assert first(judge(reference, copy, steps=[0]))[-1] == "seed"


@pytest.mark.parametrize("one", [1, 1.0, "1", True, None])
@pytest.mark.parametrize("other", [1, 1.0, "1", True, None])
def test_types_tell_settings_apart(reference: Path, tmp_path: Path, one: Any, other: Any) -> None:
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    for side, value in zip(sides, (one, other), strict=True):
        edit_config(side, set_at("model", "x", value))
    same = type(one) is type(other)
    assert judge(*sides, steps=[0]).exit_code == (0 if same else 4)


def test_a_list_is_one_setting(reference: Path, copy: Path) -> None:
    edit_config(copy, set_at("model", "encoder", "att_context_size", [-1, 4, -1]))
    comparison = judge(reference, copy, steps=[0])
    assert comparison.rung("contract").differing == 1
    assert comparison.first is not None
    assert (comparison.first.reference, comparison.first.candidate) == ([-1, -1], [-1, 4, -1])


def test_nan_is_the_same_setting(copy: Path, tmp_path: Path) -> None:
    edit_config(copy, set_at("model", "x", float("nan")))
    assert judge(copy, Path(shutil.copytree(copy, tmp_path / "twin")), steps=[0]).verdict == "identical"


# --- settings that change no number -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (("name",), ("a", "b")),
        (("trainer", "enable_progress_bar"), (True, False)),
        (("trainer", "log_every_n_steps"), (10, 1)),
        (("trainer", "logger"), (False, True)),
        (("model", "train_ds", "num_workers"), (0, 1)),
        (("model", "train_ds", "pin_memory"), (False, True)),
        (("model", "train_ds", "manifest_filepath"), ("data/train.json", "/people/me/train.json")),
    ],
)
def test_what_is_shown_or_how_data_is_fetched_is_a_note(
    reference: Path, tmp_path: Path, path: tuple[str, ...], values: tuple[Any, Any]
) -> None:
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    for side, value in zip(sides, values, strict=True):
        edit_config(side, set_at(*path, value))
    comparison = judge(*sides, steps=[0])
    assert (comparison.verdict, comparison.exit_code) == ("identical", 0)
    said = {"path": ".".join(("config", *path)), "reference": values[0], "candidate": values[1]}
    assert noted(comparison, "setting") == [said]


@pytest.mark.parametrize(("one", "other", "code"), [
    ({"devices": 1, "num_nodes": 2}, {"devices": 2, "num_nodes": 1}, 0),
    ({"devices": 2}, {"devices": 1, "num_nodes": 2}, 0),
    ({"devices": 1}, {"devices": 2}, 4), ({"devices": 1, "num_nodes": 2}, {"devices": 2, "num_nodes": 2}, 4),
    ({"devices": "auto"}, {"devices": 1}, 4), ({"devices": -1, "num_nodes": -1}, {"devices": True}, 4),
])  # fmt: skip
def test_as_many_ranks_on_other_nodes_are_one_experiment(
    reference: Path, tmp_path: Path, one: dict[str, Any], other: dict[str, Any], code: int
) -> None:
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    for side, trainer in zip(sides, (one, other), strict=True):
        edit_config(side, set_at("trainer", trainer))
    comparison = judge(*sides, steps=[0])
    assert comparison.exit_code == code
    changed = {f"config.trainer.{key}" for key in {**one, **other} if one.get(key) != other.get(key)}
    assert {note["path"] for note in noted(comparison, "setting")} == (set() if code else changed)


def test_numbers_rounded_otherwise_on_purpose_are_judged(reference: Path, tmp_path: Path) -> None:
    """`numerics=fast` is no other experiment; TF32 is one, unless it comes with that."""
    fast = Path(shutil.copytree(reference, tmp_path / "fast"))
    edit_index(fast, set_at("flags", "matmul_tf32", True))
    assert judge(reference, fast, steps=[0]).exit_code == 4
    edit_config(fast, set_at("numerics", "fast"))
    comparison = judge(reference, fast, steps=[0])
    assert [note["path"] for note in noted(comparison, "rounding")] == ["config.numerics", "flags.matmul_tf32"]
    assert comparison.verdict == "identical"


@pytest.mark.parametrize("other", [{}, {"cuda_graphs": False}, {"numerics": "fast"}], ids=str)
def test_kernels_that_are_replayed_on_one_side_are_no_other_experiment(
    reference: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    """The same kernels on the same numbers: what they make is compared, whatever the setting is."""
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    edit_config(sides[0], lambda config: config.update(other))
    edit_config(sides[1], lambda config: config.update({**other, "cuda_graphs": True}))
    comparison = judge(*sides, steps=[0])
    assert (comparison.verdict, comparison.exit_code) == ("identical", 0)
    assert [note["path"] for note in noted(comparison, "setting")] == ["config.cuda_graphs"]
    assert noted(comparison, "rounding") == []


@pytest.mark.parametrize("values", [(32, "32-true"), ("bf16", "bf16-mixed"), ("32", 32)])
def test_another_spelling_of_a_precision_is_nothing(reference: Path, tmp_path: Path, values: tuple[Any, Any]) -> None:
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    for side, value in zip(sides, values, strict=True):
        edit_config(side, set_at("trainer", "precision", value))
    comparison = judge(*sides, steps=[0])
    assert (comparison.verdict, noted(comparison, "setting")) == ("identical", [])
    edit_config(sides[1], set_at("trainer", "precision", "64-true"))
    assert judge(*sides, steps=[0]).exit_code == 4


@pytest.mark.parametrize(("limit", "code"), [(2, 0), (-1, 4)])
def test_more_epochs_matter_only_where_they_make_more_batches(
    reference: Path, tmp_path: Path, limit: int, code: int
) -> None:
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    for side, epochs in zip(sides, (1, 2), strict=True):
        edit_config(side, set_at("trainer", {"max_epochs": epochs, "max_steps": limit}))
    assert judge(*sides, steps=[0]).exit_code == code


def test_workers_matter_where_the_batches_differ(reference: Path, make: Callable[..., Path]) -> None:
    candidate = make(on_batch=lambda step, batch: batch["audio"].add_(1))
    edit_config(candidate, set_at("model", "train_ds", {"num_workers": 1}))
    comparison = judge(reference, candidate)
    assert (comparison.exit_code, first(comparison)[-1]) == (4, "config.model.train_ds.num_workers")


CONTENT = "c" * 64


@pytest.mark.parametrize(("content", "code"), [(CONTENT, 0), ("d" * 64, 4)])
def test_the_same_data_at_another_absolute_path(reference: Path, tmp_path: Path, content: str, code: int) -> None:
    """The manifests name other folders, so their hashes differ; what they lead to has one hash."""
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    for side, folder, hashed in zip(sides, ("/a", "/b"), (CONTENT, content), strict=True):
        manifest = {"name": "train.json", "sha256": folder[1] * 64}
        section = {"manifests": [manifest], "audio": {f"{folder}/x.wav": "1" * 64}, "content": hashed}
        edit_index(side, set_at("data", "train", section))
    comparison = judge(*sides, steps=[0])
    assert comparison.exit_code == code
    if code == 0:
        assert "data.train.manifests" in [note["path"] for note in noted(comparison, "setting")]


def test_a_recording_made_before_there_was_one_hash_of_all_data(reference: Path, copy: Path) -> None:
    edit_index(copy, set_at("data", "train", {**DATA["train"], "content": CONTENT}))
    assert judge(reference, copy, steps=[0]).exit_code == 0
    edit_index(copy, set_at("data", "train", "audio", {"a.wav": "99", "b.wav": "22"}))
    assert judge(reference, copy, steps=[0]).exit_code == 4, "then the files' own hashes decide"


@pytest.mark.parametrize(("older", "sound", "code"), [(True, "1", 0), (False, "1", 0), (False, "2", 4), (True, "2", 4)])
def test_noise_is_data_of_its_own(reference: Path, tmp_path: Path, older: bool, sound: str, code: int) -> None:
    """Another noise under the same speech is another experiment, also beside a recording without the one hash."""
    sides = [Path(shutil.copytree(reference, tmp_path / name)) for name in ("one", "other")]
    for side, digit, bare in zip(sides, ("1", sound), (older, False), strict=True):
        noise = {"manifests": [], "audio": {"n.wav": digit * 64}, "content": None if bare else digit * 64}
        edit_index(side, set_at("data", "train", {**DATA["train"], "content": CONTENT, "noise": noise}))
    assert judge(*sides, steps=[0]).exit_code == code


# --- both sides one recording, or not what the label says -------------------------------------------------------------


def test_the_same_folder_and_a_link_to_it_are_said(reference: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(reference)
    for other in (reference, link):
        assert noted(judge(reference, other), "same_recording") == [{"how": "folder"}]


def test_a_copy_is_said_and_a_twin_is_not(reference: Path, copy: Path, make: Callable[..., Path]) -> None:
    assert noted(judge(reference, copy), "same_recording") == [{"how": "files"}]
    assert noted(judge(reference, make()), "same_recording") == []


def test_a_label_that_does_not_fit_the_classes_is_said(reference: Path, copy: Path) -> None:
    def rename(structure: dict[str, Any]) -> None:
        structure["modules"][0]["class"] = "nemo.collections.asr.models.ssl_models.Model"

    edit_structure(copy, rename)
    edit_index(copy, lambda index: index["trainer"].update(name="nest", package="nest-ssl"))
    comparison = judge(reference, copy)
    assert noted(comparison, "foreign_classes") == [{"side": "candidate", "label": "nest-ssl", "package": "nemo"}]
    assert noted(judge(reference, reference), "foreign_classes") == []
