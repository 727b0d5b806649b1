"""Verdicts, exit codes, steps, and what is too little to say anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.compare.findings import RUNGS, Birth, Relation
from nest_ssl.recording import layout as files
from tests.compare.builder import Plan, edit_index, edit_tensors, first, judge, left, noted, record, remove, statuses

Make = Callable[..., Path]


def test_a_recording_is_identical_with_itself(reference: Path) -> None:
    comparison = judge(reference, reference)
    assert (comparison.verdict, comparison.exit_code, comparison.first) == ("identical", 0, None)
    assert set(statuses(comparison).values()) == {"identical"}
    assert list(statuses(comparison)) == [rung for rung in RUNGS if rung != "validation"], "none was made"
    assert comparison.facts.tensors == comparison.facts.tensors_same > 400


def test_a_twin_run_is_identical(reference: Path, make: Make) -> None:
    comparison = judge(reference, make())
    assert comparison.verdict == "identical"
    assert all(rung.compared for rung in comparison.rungs)


def test_a_rewrite_within_the_tolerance_is_equivalent(reference: Path, make: Make) -> None:
    def rewrite(model: nn.Module) -> None:
        layer = model.decoder
        layer.forward = lambda x: nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).float()

    candidate = make(after_build=rewrite)
    comparison = judge(reference, candidate, atol=1e-4)
    assert (comparison.verdict, comparison.exit_code) == ("equivalent", 0)
    assert first(comparison)[2] == "decoder"
    assert comparison.rung("forward").differing > 0
    assert judge(reference, candidate, atol=0.0, rtol=0.0).exit_code == 1


def test_what_grew_is_traced_back_to_the_first_unlike_bits(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[0].norm.eps = 1.01e-5

    comparison = judge(reference, make(after_build=plant), atol=4e-6, rtol=0.0)
    assert first(comparison) == ("forward", 0, "encoder.layers.0.norm", 0, "output")
    assert comparison.first is not None
    assert comparison.first.within
    assert comparison.first_beyond is not None
    assert comparison.first_beyond.address != comparison.first.address
    assert comparison.exit_code == 1


def test_a_setting_cannot_have_grown_from_rounding(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/batch.pt", lambda batch: batch["audio"].add_(1e-7))
    edit_tensors(copy, "step_0/optimizer_state.pt", lambda state: state["param_groups"][0].update(lr=1.0))
    comparison = judge(reference, copy)
    assert first(comparison)[-1] == "param_groups.0.lr"
    assert comparison.first_bits is not None
    assert comparison.first_bits.rung == "batch"
    assert comparison.cause is not None and comparison.cause.birth == Birth.GROWN


def test_a_setting_is_not_explained_by_a_value(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[1].factor = 0.51

    comparison = judge(reference, make(after_build=plant, optimizer={"lr": 0.02, "weight_decay": 0.1}))
    assert first(comparison)[0] == "forward"
    assert left(comparison) == {"OPTIMIZER": ["param_groups.0.lr"]}


def test_the_earlier_step_comes_before_the_higher_rung(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_1/batch.pt", lambda batch: batch["audio_len"].add_(1))
    edit_tensors(copy, "step_0/parameter_weights.pt", lambda weights: weights["decoder.bias"].add_(1))
    comparison = judge(reference, copy)
    assert first(comparison)[:3] == ("weights", 0, "decoder")
    assert left(comparison) == {"FIELDS": ["audio_len"]}


def test_where_the_trajectories_part(reference: Path, make: Make) -> None:
    def change(step: int, model: nn.Module) -> None:
        if step == 1:
            model.decoder.weight.data += 1

    comparison = judge(reference, make(after_step=change))
    rung = comparison.rung("steps")
    assert (rung.status, rung.compared, rung.differing) == ("diverged", 2, 1)
    assert noted(comparison, "weights_part") == [{"step": 1}]


def test_a_step_after_a_gap_does_not_claim_a_birthplace(tmp_path: Path) -> None:
    sides = [record(tmp_path / "nemo", Plan(steps=(0, 9))), record(tmp_path / "nest", Plan(steps=(0, 9)))]
    edit_tensors(sides[1], f"step_9/{files.CALLS}", lambda value: value["calls"][5]["output"].add_(1))
    remove(sides[1], f"step_9/{files.STEP_START}")  # as in a recording of before
    comparison = judge(*sides)
    assert first(comparison)[:4] == ("forward", 9, "encoder.pre_encode", 0)
    assert comparison.cause is not None and comparison.cause.unrecorded == (1, 8)
    relations = {call.relation for call in comparison.calls}
    assert Relation.UNKNOWN in relations and Relation.BORN not in relations


def test_a_step_after_a_gap_that_starts_from_the_same_weights_does(tmp_path: Path) -> None:
    sides = [record(tmp_path / "nemo", Plan(steps=(0, 9))), record(tmp_path / "nest", Plan(steps=(0, 9)))]
    edit_tensors(sides[1], f"step_9/{files.CALLS}", lambda value: value["calls"][5]["output"].add_(1))
    comparison = judge(*sides)
    assert comparison.cause is not None and comparison.cause.unrecorded is None
    assert Relation.BORN in {call.relation for call in comparison.calls}


def test_weights_that_part_in_a_gap(tmp_path: Path) -> None:
    sides = [record(tmp_path / "nemo", Plan(steps=(0, 9))), record(tmp_path / "nest", Plan(steps=(0, 9)))]
    edit_tensors(sides[1], f"step_9/{files.STEP_START}", lambda value: value["entries"]["decoder.bias"].add_(1))
    comparison = judge(*sides)
    assert first(comparison)[:3] == ("start", 9, "decoder")
    assert comparison.cause is not None and comparison.cause.birth == Birth.UNRECORDED
    assert comparison.cause.unrecorded == (1, 8)


def test_only_the_steps_asked_for(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_1/loss.pt", lambda loss: loss["loss"].add_(1))
    assert judge(reference, copy, steps=[0]).verdict == "identical"
    assert judge(reference, copy, steps=[1]).verdict == "diverged"
    with pytest.raises(UserError, match="Recorded steps: 0, 1"):
        judge(reference, copy, steps=[5])


@pytest.mark.parametrize(
    ("name", "rung"),
    [
        (files.CALLS, "forward"),
        (files.FORWARD_OUTPUT, "forward"),
        (files.BATCH, "batch"),
        (files.LOSS, "loss"),
        (files.GRADIENTS, "gradients"),
        (files.WEIGHTS, "weights"),
        (files.RNG, "draws"),
    ],
)
@pytest.mark.parametrize("both", [False, True])
def test_what_was_not_recorded_is_never_a_pass(reference: Path, copy: Path, name: str, rung: str, both: bool) -> None:
    remove(copy, f"step_0/{name}")
    comparison = judge(copy if both else reference, copy)
    assert (comparison.verdict, comparison.exit_code, comparison.first) == ("inconclusive", 2, None)
    assert statuses(comparison)[rung] == "not compared"
    assert statuses(comparison)["steps"] == "not compared"
    assert {"step": 0, "side": "candidate", "file": name} in noted(comparison, "file_missing")
    assert comparison.rung(rung).missing_candidate > 0


def test_what_was_not_recorded_does_not_hide_a_difference(reference: Path, copy: Path) -> None:
    remove(copy, f"step_0/{files.CALLS}")
    edit_tensors(copy, "step_0/loss.pt", lambda loss: loss["loss"].add_(1))
    assert judge(reference, copy).exit_code == 1


def test_no_calls_is_too_little(copy: Path) -> None:
    edit_tensors(copy, f"step_0/{files.CALLS}", lambda value: value["calls"].clear())
    edit_index(copy, lambda index: index["calls"].update({"0": []}))
    edit_index(copy, lambda index: index["steps"]["0"].update(calls=0))
    assert judge(copy, copy).exit_code == 2


def test_no_steps_is_too_little(tmp_path: Path) -> None:
    empty = record(tmp_path / "empty", Plan(steps=()))
    comparison = judge(empty, empty)
    assert (comparison.verdict, comparison.exit_code) == ("inconclusive", 2)


def test_no_common_weight_is_not_a_pass(reference: Path, copy: Path) -> None:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[f"model.{name}"] = weights.pop(name)

    edit_tensors(copy, files.INITIAL_WEIGHTS, rename)
    remove(copy, f"step_0/{files.STEP_START}")
    comparison = judge(reference, copy)
    assert comparison.exit_code == 1
    assert comparison.rung("initial_weights").missing_candidate == comparison.rung("initial_weights").missing_reference


def test_ranks_are_compared_each(reference: Path, tmp_path: Path) -> None:
    twice = record(tmp_path / "ddp", Plan(steps=(0,)))
    index_names = []
    for rank in (0, 1):
        (twice / f"rank_{rank}").mkdir()
        for path in (twice / "step_0").iterdir():
            target = twice / f"rank_{rank}/step_0" / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
            index_names.append((f"step_0/{path.name}", f"rank_{rank}/step_0/{path.name}"))

    def move(index: dict[str, object]) -> None:
        entries = index["files"]
        assert isinstance(entries, dict)
        entries.update({new: entries[old] for old, new in index_names})
        tensors = index["tensors"]
        assert isinstance(tensors, dict)
        tensors.update({new: tensors[old] for old, new in index_names if old in tensors})
        index["world_size"] = 2

    edit_index(twice, move)
    other = tmp_path / "other"
    other.symlink_to(twice)
    comparison = judge(twice, other)
    assert comparison.verdict == "identical"
    assert {tally.rank for tally in comparison.rung("loss").tallies} == {0, 1}
    edit_tensors(twice, "rank_1/step_0/loss.pt", lambda loss: loss["loss"].add_(1))
    assert judge(reference, twice).exit_code == 4  # another number of processes


def test_labels(reference: Path, make: Make) -> None:
    comparison = judge(reference, make())
    assert (comparison.reference.label, comparison.candidate.label) == ("NeMo 3.0.0", "nest-ssl 0.1.0")
