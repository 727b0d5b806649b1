"""Operators and learning rates of real NeMo's step and of the port's, with everything random on.

Watching changes no bit on either side; NeMo's rates, from its own scheduler, are the port's over 100,000 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from aligning import GENERATION, NEMO, NEST, SMALL, TWO_STEPS, record

from nest_ssl.compare.operators import diff
from nest_ssl.compare.schedules import compare_rates
from nest_ssl.recording.evidence import StepOperators
from nest_ssl.recording.reader import Recording, open_recording

FULL = ["run=full", *TWO_STEPS]
EVIDENCE = ["operators=true", "learning_rates=100000"]


@pytest.fixture(scope="module")
def traced(recorded: Callable[..., Path]) -> dict[str, Recording]:
    found = {}
    for subject in (NEMO, NEST):
        found[subject.name] = open_recording(recorded(subject, *FULL, *EVIDENCE))
        found[f"bare {subject.name}"] = open_recording(recorded(subject, *FULL))
    return found


def operators(recording: Recording, step: int = 0) -> StepOperators:
    found = recording.step(step).operators()
    assert found is not None
    return found


@pytest.mark.parametrize("side", ["nemo", "nest"])
def test_watching_changes_no_bit(side: str, traced: dict[str, Recording]) -> None:
    """Batches, calls, losses, gradients, weights, optimizer and generators: every file but the settings."""
    files, bare = (traced[name].index.files for name in (side, f"bare {side}"))
    assert {name for name in files if files[name] != bare.get(name)} == {
        "config.yaml", "learning_rates.json", "step_0/operators.json", "step_1/operators.json"}  # fmt: skip
    assert bare.keys() < files.keys()


@pytest.mark.parametrize("side", ["nemo", "nest"])
def test_every_operator_has_an_owner(side: str, traced: dict[str, Recording]) -> None:
    found = operators(traced[side], 1)
    phases = {phase: [o for o in found.operators if o.phase == phase] for phase in ("forward", "backward", "optimizer")}
    assert all(len(ran) > 300 for ran in phases.values())
    of_modules = sum(o.module is not None for o in found.operators)
    assert of_modules > 0.85 * len(found.operators)
    outside = {o.source.partition(":")[0] for o in phases["forward"] + phases["backward"] if o.module is None}
    made = ("lightning/", "nest_ssl/train/module.py" if side == "nest" else "nemo/")
    assert outside and all(file.startswith(made) for file in outside), outside
    package = "nemo/" if side == "nemo" else "nest_ssl/"
    own = [o for o in phases["forward"] if o.module is not None and o.source]
    assert sum(o.source.startswith(package) for o in own) > 0.95 * len(own)
    updated = {o.module for o in phases["optimizer"] if "addcdiv" in o.name}
    assert "encoder.layers.1.norm_out" in updated and "quantizer" not in updated


def test_both_sides_run_the_same_linear_layers_and_losses(traced: dict[str, Recording]) -> None:
    sides = operators(traced["nemo"]), operators(traced["nest"])
    for pattern in ("*linear*", "*norm*", "decoder*", "loss.mlm_loss.nll_loss"):
        found = [sum(fnmatchcase(o.module or "", pattern) for o in side.operators) for side in sides]
        assert min(found) > 1, pattern  # what matches nothing has no difference
        assert [d for d in diff(*sides, [pattern]) if d.changes] == [], pattern
    assert all(any(o.phase == "optimizer" for o in side.operators) for side in sides)
    assert [d for d in diff(*sides) if d.phase == "optimizer"] == [], "every update with the same numbers"


def test_the_rates_of_both_schedulers_are_the_same_over_100_000_steps(traced: dict[str, Recording]) -> None:
    nemo, nest = traced["nemo"].learning_rates(), traced["nest"].learning_rates()
    assert nemo is not None and nest is not None and nemo.longer is not None and nest.longer is not None
    assert (nemo.scheduler, nest.scheduler) == (
        "nemo.core.optim.lr_scheduler.NoamAnnealing", "nest_ssl.train.schedules.NoamAnnealing")  # fmt: skip
    assert len(nemo.rates) == len(nemo.longer.rates) == 100_000
    assert compare_rates(nemo, nest) == []


NAMED = ["model.optim.lr=0.01", "~model.optim.sched.d_model"]
SCHEDULES = {
    "CosineAnnealing": ["model.optim.sched.warmup_steps=null", "model.optim.sched.warmup_ratio=0.1"],
    "NoamHoldAnnealing": ["model.optim.sched.warmup_steps=100", "+model.optim.sched.hold_ratio=0.2"],
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_short_run_shows_the_whole_schedule(name: str, tmp_path: Path) -> None:
    """Planned for as many steps, what the run as configured is too short for: annealing, hold, ratios of the whole."""
    quick = [
        *SMALL,
        "batches=1",
        "save_steps=none",
        "learning_rates=1000",
        f"model.optim.sched.name={name}",
    ]
    rates = []
    for subject in (NEMO, NEST):
        record(subject, tmp_path / subject.name, *quick, *NAMED, *SCHEDULES[name])
        rates.append(open_recording(tmp_path / subject.name).learning_rates())
    nemo, nest = rates
    assert nemo is not None and nest is not None and nemo.longer is not None
    assert compare_rates(nemo, nest) == []
    course = [rate for (rate,) in nemo.longer.rates]
    assert len(set(course)) > 500 and len(set(course)) > len({rate for (rate,) in nemo.rates})


@pytest.mark.skipif(GENERATION == "2.4", reason="the port is to differ from the release that is installed")
def test_another_release_shows_in_the_operators(traced: dict[str, Recording], tmp_path: Path) -> None:
    """The port as NeMo 2.4 against what is installed: padding mode, length, masked convolutions, generators."""
    from nest_ssl.run.experiment import run

    assert run(NEST, [*FULL, "nemo=2.4", "operators=true", f"output_dir={tmp_path / 'nest'}"]) == 0
    found = diff(operators(open_recording(tmp_path / "nest")), operators(traced["nemo"]))
    names = {(d.module, c.kind, (c.reference or c.candidate).name) for d in found for c in d.changes}  # type: ignore[union-attr]
    features, masking, subsampling = "preprocessor.featurizer", "mask_processor", "encoder.pre_encode.conv"
    assert {
        (features, "missing", "aten.reflection_pad1d.default"), (features, "added", "aten.constant_pad_nd.default"),
        (masking, "missing", "numpy.draw"), (subsampling, "added", "aten.mul.Tensor")} <= names  # fmt: skip
    missing = [c.reference for d in found for c in d.changes if d.module == features and c.kind == "missing"]
    assert any(o and o.name == "aten.add.Tensor" and o.arguments == {"other": 1} for o in missing), "the length"
