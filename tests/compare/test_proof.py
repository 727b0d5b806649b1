"""Bug or rounding, born here or came in: the evidence on real recordings of the miniature, weighed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn

from nest_ssl.compare import FixedTolerance, compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.evidence import SIDES, open_evidence
from nest_ssl.compare.rules.same_function import By, Function
from nest_ssl.recording import evidence as files
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.evidence import (
    Margin,
    Operator,
    Operators,
    Place,
    Schedule,
    Unit,
    seal_of,
    write_evidence,
)
from nest_ssl.recording.reader import open_recording
from tests.compare.builder import Plan, edit_tensors, record
from tests.compare.evidence import (
    apart,
    entry,
    explained,
    measured_floors,
    output,
    unit,
    write_floor,
    write_replay,
)
from tests.compare.test_between import run

Make = Callable[..., Path]
ONE_STEP = (0,)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("reference") / "nemo", Plan(steps=ONE_STEP))


@pytest.fixture(scope="module")
def floors(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("floors")
    measured_floors(folder, reference, Plan(steps=ONE_STEP))
    return folder / files.FLOOR


@pytest.fixture
def folder(tmp_path: Path, floors: Path) -> Path:
    """A folder of evidence that holds the noise floor."""
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / files.FLOOR).symlink_to(floors)
    return tmp_path / "evidence"


def rewritten(model: nn.Module) -> None:
    """The decoder's product in float64: correct, and other bits."""
    layer = model.decoder
    layer.forward = lambda x: nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).float()


def other_eps(model: nn.Module) -> None:
    model.encoder.layers[1].norm.eps = 2e-3


def nest(tmp_path: Path, **plan: object) -> Path:
    return record(tmp_path / "nest", Plan("nest", "0.1.0", steps=ONE_STEP, **plan))  # type: ignore[arg-type]


def rounded(module: str = "decoder") -> list[Unit]:
    """What a replay says of a rewrite: its output has other bits, by rounding, and so have its gradients."""
    own = [apart(of_entry(Kind.GRADIENT, f"{module}.{name}"), 1e-7, 1e-8) for name in ("weight", "bias")]
    return [
        unit(module, outcome="other bits", deviations=[apart(output(module), 6e-8, 1e-8)]),
        unit(module, "backward", outcome="other bits", deviations=own),
    ]


def born(comparison: Comparison) -> list[tuple[str, str | None]]:
    return [(one.phase, one.module) for one in comparison.proof.born]


def lacking(comparison: Comparison) -> list[str]:
    return [note.kind for note in comparison.proof.lacking]


def marks(comparison: Comparison) -> dict[str, Function]:
    return {one.module: one.function for one in comparison.proof.modules}


# --- rounding


def test_a_correct_rewrite_is_equivalent(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=rewritten)
    write_replay(folder, reference, candidate, rounded())
    comparison = explained(reference, candidate, folder)
    assert (comparison.verdict, comparison.exit_code) == ("equivalent", 0), lacking(comparison)
    assert born(comparison) == [] and lacking(comparison) == []
    assert comparison.proof.largest is not None and comparison.proof.largest.judgement is not None
    assert marks(comparison)["decoder"] is Function.CAME_IN  # its output differs, by rounding
    assert comparison.proof.units[Function.SAME, By.FLOOR] == 2


def test_rounding_is_shown_by_all_of_it_or_not_at_all(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=rewritten)
    comparison = explained(reference, candidate, folder)  # the floor alone
    assert (comparison.verdict, lacking(comparison)) == ("diverged", ["lacks_function"])
    (folder / files.FLOOR).unlink()
    write_replay(folder, reference, candidate, rounded())
    comparison = explained(reference, candidate, folder)  # the replay alone
    assert (comparison.verdict, lacking(comparison)) == ("diverged", ["lacks_floor"])
    assert [one.decided for one in comparison.proof.born] == [False, False]
    assert marks(comparison)["decoder"] is Function.UNDECIDED


def test_the_same_bits_need_no_evidence(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path)
    write_replay(folder, reference, candidate, [])
    comparison = explained(reference, candidate, folder)
    assert (comparison.verdict, born(comparison), lacking(comparison)) == ("identical", [], [])
    assert set(marks(comparison).values()) == {Function.SAME}


def test_what_was_not_replayed_is_not_shown(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=rewritten)
    units = [unit(one.module, one.phase, outcome="not replayed", why="no such module") for one in rounded()]
    write_replay(folder, reference, candidate, units)
    comparison = explained(reference, candidate, folder)
    assert comparison.verdict == "diverged"
    assert marks(comparison)["decoder"] is Function.NOT_REPLAYED
    assert "lacks_replay" in lacking(comparison)
    assert ("forward", "decoder") in born(comparison)  # as far as recordings alone can say


# --- bugs


def test_a_small_bug_that_is_within_the_floor_is_named(reference: Path, folder: Path, tmp_path: Path) -> None:
    """End to end nothing is beyond rounding; the replay in float64 shows another function."""
    candidate = nest(tmp_path, after_build=rewritten)
    write_replay(folder, reference, candidate, rounded())
    in_float64 = [unit("decoder", outcome="other bits", deviations=[apart(output("decoder"), 3e-8, 3e-8)])]
    write_replay(folder, reference, candidate, in_float64, f"{files.FLOAT64}/{files.REPLAY}")
    comparison = explained(reference, candidate, folder)
    assert (comparison.verdict, born(comparison)) == ("diverged", [("forward", "decoder")])
    found = comparison.proof.born[0]
    assert (found.by, found.call, found.step) == (By.FLOAT64, 0, 0) and found.floors is not None
    assert marks(comparison)["decoder"] is Function.ANOTHER


def test_three_faults_at_once_are_all_named(reference: Path, folder: Path, tmp_path: Path) -> None:
    """Features, a norm and the optimizer: end to end the later ones hide behind the first."""

    def plant(model: nn.Module) -> None:
        other_eps(model)
        features = model.preprocessor.forward
        model.preprocessor.forward = lambda audio, length: (features(audio, length)[0] * 1.01, length)

    candidate = nest(tmp_path, after_build=plant, optimizer={"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3})
    update = of_entry(Kind.UPDATE, "decoder.weight")
    write_replay(folder, reference, candidate, [
        unit("preprocessor", outcome="other bits", deviations=[apart(output("preprocessor", path="0"), 1e-2)]),
        unit("encoder.layers.1.norm", outcome="other bits", order=9,
             deviations=[apart(output("encoder.layers.1.norm"), 1e-3)]),
        unit(None, "optimizer", outcome="other bits", deviations=[apart(update, 0.5)]),
    ])  # fmt: skip
    comparison = explained(reference, candidate, folder)
    assert born(comparison) == [
        ("forward", "preprocessor"), ("forward", "encoder.layers.1.norm"), ("optimizer", None),
    ]  # fmt: skip
    assert marks(comparison)["encoder.layers.0.norm"] is Function.CAME_IN
    assert marks(comparison)["encoder.layers.1.norm"] is Function.ANOTHER


def test_what_the_replay_of_the_optimizer_shows_is_named_once(reference: Path, folder: Path, tmp_path: Path) -> None:
    def nudge(step: int, model: nn.Module) -> None:
        model.decoder.weight.data += 1e-3

    candidate = nest(tmp_path, after_step=nudge)
    write_replay(folder, reference, candidate, [])
    assert born(explained(reference, candidate, folder)) == [("optimizer", "decoder")]
    update = apart(of_entry(Kind.UPDATE, "decoder.weight"), 0.5)
    write_replay(folder, reference, candidate, [unit(None, "optimizer", outcome="other bits", deviations=[update])])
    assert born(explained(reference, candidate, folder)) == [("optimizer", None)]


def test_a_fault_that_no_replay_sees_is_named_end_to_end(reference: Path, folder: Path, tmp_path: Path) -> None:
    """A gradient edited after backward: every module has the same function."""

    def edit(step: int, model: nn.Module) -> None:
        model.encoder.layers[0].linear1.bias.grad.mul_(1.01)

    candidate = nest(tmp_path, on_gradients=edit)
    write_replay(folder, reference, candidate, [])
    comparison = explained(reference, candidate, folder)
    assert (comparison.verdict, born(comparison)) == ("diverged", [("backward", "encoder.layers.0.linear1")])
    assert comparison.proof.born[0].by is None


def test_a_batch_and_a_setting_of_the_optimizer_are_each_named(reference: Path, folder: Path, tmp_path: Path) -> None:
    def louder(step: int, batch: dict[str, Tensor]) -> None:
        batch["audio"] *= 1.5

    candidate = nest(tmp_path, on_batch=louder, optimizer={"lr": 0.02, "weight_decay": 0.1})
    write_replay(folder, reference, candidate, [])
    assert born(explained(reference, candidate, folder)) == [("batch", None), ("schedule", None)]


def test_what_is_beyond_the_floor_is_no_rounding_whatever_its_function(
    reference: Path, folder: Path, tmp_path: Path
) -> None:
    """The replay and float64 agree, as with a cast that only a part outside of all modules makes."""
    candidate = nest(tmp_path, after_build=rewritten)
    edit_tensors(candidate, "step_0/loss.pt", lambda loss: loss["loss"].mul_(1.001))
    write_replay(folder, reference, candidate, rounded())
    comparison = explained(reference, candidate, folder)
    assert comparison.verdict == "diverged"
    assert "beyond_floor" in lacking(comparison)


def test_a_floor_of_few_repeats_is_said_where_a_difference_lies_beyond_it(
    reference: Path, folder: Path, tmp_path: Path
) -> None:
    candidate = nest(tmp_path, after_build=rewritten)
    edit_tensors(candidate, "step_0/loss.pt", lambda loss: loss["loss"].mul_(1.001))
    write_replay(folder, reference, candidate, rounded())
    sides = open_recording(reference), open_recording(candidate)
    evidence = open_evidence(folder, *sides)
    whole = lacking(explained(reference, candidate, folder))
    evidence.floors = {place: replace(floors, repeats=2) for place, floors in evidence.floors.items()}
    assert lacking(compare_recordings(*sides, declared=[], evidence=evidence)) == [*whole, "lacks_repeats"]


def test_a_tolerance_of_the_users_own_goes_before_the_evidence(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=rewritten)
    write_replay(folder, reference, candidate, rounded())
    assert explained(reference, candidate, folder, rule=FixedTolerance(1e-4, 1e-4)).verdict == "equivalent"
    assert explained(reference, candidate, folder, rule=FixedTolerance(0.0, 0.0)).verdict == "diverged"


# --- tokens


@pytest.mark.parametrize(
    ("flips", "measured", "within"), [(1, 5e-3, True), (1, 1e-3, False), (1, 0.0, False), (0, 5e-3, False)]
)
def test_what_comes_after_a_token_that_rounding_flips_is_held_against_the_same_flip(
    reference: Path, tmp_path: Path, flips: int, measured: float, within: bool
) -> None:
    """The loss is 1 % off. A repeat with the same flip moved it as far, or less far, or there was none."""
    address = Address(Kind.OUTPUT, "quantizer", 0)
    candidate = nest(tmp_path)

    def flip(value: dict[str, list[dict[str, object]]]) -> None:
        call = next(row for row in value["calls"] if row["module"] == "quantizer")
        assert isinstance(call["output"], Tensor)
        call["output"][0, 1] += 1

    edit_tensors(candidate, "step_0/layer_outputs.pkl", flip)
    edit_tensors(candidate, "step_0/forward_output.pt", lambda found: found["tokens"][0, 1].add_(1))
    edit_tensors(candidate, "step_0/loss.pt", lambda loss: loss["loss"].mul_(1.01))
    folder, loss = tmp_path / "evidence", Address(Kind.LOSS, slot="loss")
    write_replay(folder, reference, candidate, [])
    near = Margin(place=Place.of(address), index=[0, 1], margin=1e-7, floor=2e-7, flips=flips)
    write_floor(folder, reference, 0, [entry(loss, 1e-7, 1e-7, relative_flipped=measured)], [near])
    comparison = explained(reference, candidate, folder)
    found = {f.address.own_name: f.judgement for f in comparison.rung("loss").findings}["loss"]
    assert found is not None and (found.within, found.rule) == (within, "behind a flip")
    assert ("lacks_flip" in lacking(comparison)) is not (measured > 0 and flips > 0)
    assert all(one.within for one in comparison.rung("forward").findings)  # the token, handed on
    write_floor(folder, reference, 0, [entry(loss, 1e-7, 1e-7)])
    found = {f.address.own_name: f.judgement for f in explained(reference, candidate, folder).rung("loss").findings}
    assert found["loss"] is not None and found["loss"].rule == "noise floor"


# --- operators and schedules


def test_the_operators_that_differ_stand_beside_a_birthplace(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=other_eps)
    name = "encoder.layers.1.norm"
    write_replay(
        folder, reference, candidate, [unit(name, outcome="other bits", deviations=[apart(output(name), 1e-3)])]
    )
    seals = {
        f"{side}": seal_of(open_recording(path).index) for side, path in zip(SIDES, (reference, candidate), strict=True)
    }
    for side, eps, line in (("reference", 1e-5, 12), ("candidate", 2e-3, 34)):
        norm = Operator(
            name="aten.native_layer_norm.default", phase="forward", module=name, call=0, arguments={"eps": eps},
            source=f"torch/{side}.py:{line}",
        )  # fmt: skip
        view = Operator(name="aten.view.default", phase="forward", module=name, call=0)
        made = Operators(
            **seals, side=side, step=0, operators=[norm, *([view] if side == "reference" else [])],
            enclosing={"#0": "", f"{name}#0": "#0"},
        )  # fmt: skip
        write_evidence(folder / files.OPERATORS / f"{side}.json", made)
    (found,) = explained(reference, candidate, folder).proof.born
    assert found.operators == (
        "aten.native_layer_norm.default: eps 1e-05 -> 0.002",
        "missing aten.view.default",
    )
    assert found.source == ("torch/reference.py:12", "torch/candidate.py:34")


@pytest.mark.parametrize(("rate", "parts"), [(0.5, True), (1.0 - 2**-53, False)])
def test_a_schedule_that_parts_after_the_recorded_steps_is_no_pass(
    reference: Path, tmp_path: Path, rate: float, parts: bool
) -> None:
    candidate, folder = nest(tmp_path), tmp_path / "evidence"
    seals = {
        f"{side}": seal_of(open_recording(path).index) for side, path in zip(SIDES, (reference, candidate), strict=True)
    }
    for side, last in (("reference", 1.0), ("candidate", rate)):
        made = Schedule(**seals, side=side, scheduler="Noam", steps=[0, 1, 2], rates=[[0.1], [0.2], [last]])
        write_evidence(folder / files.SCHEDULE / f"{side}.json", made)
    comparison = explained(reference, candidate, folder)
    assert comparison.verdict == ("diverged" if parts else "identical")
    assert [(one.phase, one.step) for one in comparison.proof.born] == ([("schedule", 2)] if parts else [])


@pytest.mark.parametrize(
    ("here", "in_float64", "verdict"),
    [
        (1 + 2e-7, None, "equivalent"), (1 + 2e-7, 1.0, "equivalent"),  # as a kernel that only validation chooses
        (1 + 2e-7, 1 + 1e-6, "diverged"), (1 + 1e-4, None, "diverged"), (1 + 1e-4, 1.0, "diverged"),
    ],
)  # fmt: skip
def test_a_validation_alone_is_judged_by_its_floor_and_by_float64(
    tmp_path: Path, here: float, in_float64: float | None, verdict: str
) -> None:
    """Where all steps have the same bits; an eval mode that is another function is one in float64, too."""
    sound, other = run(tmp_path / "sound"), run(tmp_path / "run", validation_loss=lambda loss: loss * here)
    write_floor(tmp_path, sound, 2, [entry(Address(Kind.LOSS, slot="loss"), 2e-7, 1e-6)])
    write_replay(tmp_path, sound, other, [])
    sides = open_recording(sound), open_recording(other)
    evidence = open_evidence(tmp_path, *sides)
    if in_float64 is not None:
        double = run(tmp_path / "double", validation_loss=lambda loss: loss * in_float64)
        evidence.float64 = sides[0], open_recording(double)
    found = compare_recordings(*sides, declared=[], evidence=evidence)
    assert found.verdict == verdict
    assert [one.phase for one in found.proof.born] == ([] if verdict == "equivalent" else ["validation"])
