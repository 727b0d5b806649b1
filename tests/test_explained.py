"""With evidence the verdict is bug or rounding: each planted fault is `diverged` and named, each rewrite `equivalent`.

What `nest-ssl explain` does in processes of their own is done here in one: the noise floor of the reference once, and
for each candidate a training in float64 and both replays. What a fault is to be named by stands beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from train_nest import NEST

from nest_ssl.compare import compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.evidence import open_evidence
from nest_ssl.recording import evidence as files
from nest_ssl.recording.evidence import NoiseFloor, read_evidence, seal_of, write_evidence
from nest_ssl.recording.layout import step_folder
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run.candidate import replay_recording
from nest_ssl.run.experiment import run
from nest_ssl.run.nest_report import explain_nest
from nest_ssl.run.subject import Subject
from tests.replay import planted
from tests.replay.conftest import OVERRIDES
from tests.replay.test_loop import ascent, no_update, optimizer_setting

ONE_STEP = ["batches=1", "save_steps=0", "model.train_ds.batch_size=4", "trainer.limit_val_batches=0"]  # with padding
FLOAT64 = "trainer.precision=64-true"
Plant = Callable[[Any], None]
Names = set[tuple[str, str | None]]  # phase, module


def subject(plants: Sequence[Plant]) -> Subject:
    """The port with the plants in it."""

    def build(*arguments: Any) -> LightningModule:
        model = NEST.build_model(*arguments)
        for plant in plants:
            plant(model)
        return model

    return dataclasses.replace(NEST, build_model=build)


def recorded(trainer: Subject, folder: Path, *overrides: str) -> Recording:
    assert run(trainer, [*OVERRIDES, *ONE_STEP, *overrides, f"output_dir={folder}", "overwrite=true"]) == 0
    return open_recording(folder, verify=False)


class Workbench:
    """A reference with its noise floor and its float64 training, and room for one candidate after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.evidence = folder, folder / files.FOLDER
        self.reference = recorded(NEST, folder / "reference", "noise_floor=8")
        self.double = recorded(NEST, self.evidence / files.FLOAT64 / "reference", FLOAT64)
        for step in self.reference.steps:
            name = Path(step_folder(step)) / files.NOISE_FLOOR
            floor = read_evidence(self.reference.path / name, NoiseFloor)
            bound = floor.model_copy(update={"reference": seal_of(self.reference.index)})
            write_evidence(self.evidence / files.FLOOR / name, bound)

    def explained(self, *plants: Plant) -> Comparison:
        """The reference against the port with these plants, with all evidence but operators."""
        trainer = subject(plants)
        candidate = recorded(trainer, self.folder / "candidate")
        double = recorded(trainer, self.evidence / files.FLOAT64 / "candidate", FLOAT64)
        write_evidence(self.evidence / files.REPLAY, replay_recording(trainer, self.reference, candidate))
        in_double = replay_recording(trainer, self.double, double, double=True)
        write_evidence(self.evidence / files.FLOAT64 / files.REPLAY, in_double)
        found = open_evidence(self.evidence, self.reference, candidate)
        return compare_recordings(self.reference, candidate, explainers=[explain_nest], evidence=found)


@pytest.fixture(scope="module")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return Workbench(tmp_path_factory.mktemp("workbench"))


def places(comparison: Comparison) -> Names:
    return {(born.phase, born.module) for born in comparison.proof.born}


def named(value: Any) -> str | None:
    return getattr(value, "__name__", None)


def both(module: str) -> Names:
    return {("forward", module), ("backward", module)}


L = planted.LAYER
FAULTS: dict[Plant, Names] = {
    planted.norm_eps_a_tenth_more: both(f"{L}.norm_conv"),
    planted.residual_factor: both(L),
    planted.one_gradient: {("backward", f"{L}.feed_forward1.linear1")},
    optimizer_setting("lr", 5.00005): {("schedule", None)},
    ascent: {("optimizer", None)},
    no_update: {("optimizer", None)},
}
REWRITES: list[Plant] = [
    planted.split_product,
    planted.norm_by_hand,
    planted.softmax_in_another_order,
    planted.swish_by_hand,
    optimizer_setting("fused", True),
]


@pytest.mark.parametrize(("plant", "expected"), FAULTS.items(), ids=named)
def test_a_fault_is_diverged_and_named(workbench: Workbench, plant: Plant, expected: Names) -> None:
    comparison = workbench.explained(plant)
    assert (comparison.verdict.value, places(comparison)) == ("diverged", expected)


@pytest.mark.parametrize("plant", REWRITES, ids=named)
def test_a_correct_rewrite_is_equivalent(workbench: Workbench, plant: Plant) -> None:
    comparison = workbench.explained(plant)
    assert (comparison.verdict.value, places(comparison)) == ("equivalent", set())


def test_fused_attention_does_not_diverge(workbench: Workbench) -> None:
    """On a CPU torch may take its plain path here, which has the same bits."""
    comparison = workbench.explained(planted.fused_attention)
    assert comparison.verdict.value in ("identical", "equivalent") and places(comparison) == set()


def test_faults_of_features_a_layer_and_the_optimizer_are_all_named(workbench: Workbench) -> None:
    comparison = workbench.explained(planted.stft_padding, planted.attention_scale, optimizer_setting("eps", 1e-7))
    features = ("forward", "preprocessor.featurizer")
    expected = {features, *both(f"{L}.self_attn"), ("optimizer", None)}
    assert (comparison.verdict.value, places(comparison)) == ("diverged", expected)
