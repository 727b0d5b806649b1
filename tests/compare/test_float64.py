"""Both trainers in float64, end to end: what it shows, and how far; and what the runs certify about themselves."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare.rules.known import Known
from nest_ssl.compare.rules.same_function import Function
from nest_ssl.recording import evidence as files
from nest_ssl.recording.evidence import Check, Observer, seal_of, write_evidence
from nest_ssl.recording.reader import open_recording
from nest_ssl.report.document import plain
from nest_ssl.report.sections.headline import title
from tests.compare.builder import Plan, edit_config, record, remove
from tests.compare.evidence import explained, write_replay
from tests.compare.test_proof import ONE_STEP, floors, folder, lacking, nest, reference, rewritten, rounded
from tests.compare.test_rules import THIRD, Recorded, judged, other_bits
from tests.compare.test_rules import evidence as floor_of_m

__all__ = ["floors", "folder", "reference"]


def in_float64(target: Path, name: str, **plan: object) -> Path:
    def double(model: nn.Module) -> None:
        model.double()
        plan.get("after_build", lambda model: None)(model)  # type: ignore[operator]

    def batch(step: int, values: dict[str, Tensor]) -> None:
        values["audio"] = values["audio"].double()

    steps = plan.get("steps", ONE_STEP)
    made = record(target / name, Plan(name, steps=steps, after_build=double, on_batch=batch))  # type: ignore[arg-type]
    edit_config(made, lambda config: config.update(trainer={"precision": "64-true"}))
    return made


def split(model: nn.Module) -> None:
    """The decoder's product in two halves: correct in any precision."""
    layer = model.decoder

    def forward(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x[..., :half] @ layer.weight[:, :half].T + x[..., half:] @ layer.weight[:, half:].T + layer.bias

    layer.forward = forward


def test_both_trainers_in_float64_stand_in_for_the_replay(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=split)
    for name, plant in (("nemo", None), ("nest", split)):
        in_float64(folder / files.FLOAT64, name, **({"after_build": plant} if plant else {}))
    comparison = explained(reference, candidate, folder)
    assert comparison.proof.float64.agreement == "agrees", comparison.proof.float64
    assert comparison.proof.float64.largest < 1e-13  # what is zero has no size
    assert (comparison.verdict, lacking(comparison)) == ("equivalent", [])


def test_in_float64_a_small_bug_is_seen_and_placed(reference: Path, folder: Path, tmp_path: Path) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[1].norm.eps = 1.01e-5

    candidate = nest(tmp_path, after_build=plant)
    in_float64(folder / files.FLOAT64, "nemo")
    in_float64(folder / files.FLOAT64, "nest", after_build=plant)
    comparison = explained(reference, candidate, folder)
    assert comparison.proof.float64.agreement == "differs"
    assert comparison.proof.float64.first is not None
    assert comparison.proof.float64.first.address.module == "encoder.layers.1.norm"
    assert comparison.verdict == "diverged" and "lacks_float64" in lacking(comparison)


def test_float64_of_other_steps_says_nothing_of_these(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=split)
    for name in ("nemo", "nest"):
        in_float64(folder / files.FLOAT64, name, steps=(1,))
    comparison = explained(reference, candidate, folder)
    assert (comparison.proof.float64.agreement, comparison.verdict) == ("not had", "diverged")
    assert lacking(comparison) == ["lacks_function"]


def test_float64_covers_only_what_was_compared_there(reference: Path, folder: Path, tmp_path: Path) -> None:
    candidate = nest(tmp_path, after_build=split)
    for name, plant in (("nemo", None), ("nest", split)):
        made = in_float64(folder / files.FLOAT64, name, **({"after_build": plant} if plant else {}))
        remove(made, "step_0/layer_outputs.pkl")
    comparison = explained(reference, candidate, folder)
    found = comparison.proof.float64
    assert (found.agreement, found.without) == ("agrees in part", (0, 0, "forward"))
    assert (comparison.verdict, lacking(comparison)) == ("diverged", ["lacks_replay"])
    assert comparison.proof.lacking[0].values["at"].phase == "forward"


@pytest.mark.parametrize(("kept_in", "agreement"), [(torch.float32, "float32 values"), (torch.float64, "differs")])
def test_what_is_float32_even_there_is_no_function_that_differs(
    reference: Path, folder: Path, tmp_path: Path, kept_in: torch.dtype, agreement: str
) -> None:
    """Features that are computed in float32 on both sides differ by rounding, as a sum in another order does."""

    def features(factor: float) -> Callable[[nn.Module], None]:
        def plant(model: nn.Module) -> None:
            forward = model.preprocessor.forward

            def rounded_to(audio: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
                return (forward(audio, length)[0] * factor).to(kept_in).double(), length

            model.preprocessor.forward = rounded_to

        return plant

    candidate = nest(tmp_path, after_build=split)
    in_float64(folder / files.FLOAT64, "nemo", after_build=features(1.0))
    in_float64(folder / files.FLOAT64, "nest", after_build=features(1 + 2e-7))
    comparison = explained(reference, candidate, folder)
    found = comparison.proof.float64
    assert found.agreement == agreement
    assert found.first is not None and found.first.address.module == "preprocessor"
    assert (0, 0, "batch") in found.covers and (0, 0, "forward") not in found.covers
    assert lacking(comparison)[0] == {"differs": "lacks_float64"}.get(agreement, "lacks_function")


def test_what_is_known_is_known_in_float64_as_well(reference: Path, folder: Path, tmp_path: Path) -> None:
    def plant(model: nn.Module) -> None:
        forward = model.decoder.forward
        model.decoder.forward = lambda x: forward(x) * (1 + 1e-6)

    candidate = nest(tmp_path, after_build=plant)
    in_float64(folder / files.FLOAT64, "nemo")
    in_float64(folder / files.FLOAT64, "nest", after_build=plant)
    entry = Known("decoder.output", 1e-5, "c", "e", datetime.date(2999, 12, 31), 10.0)
    assert explained(reference, candidate, folder).proof.float64.agreement == "differs"
    found = explained(reference, candidate, folder, known=[entry]).proof.float64
    assert found.agreement == "agrees" and (0, 0, "forward") not in found.covers  # which only the user says


@pytest.mark.parametrize(
    ("why", "function"),
    [
        ("[2, 4] float64 against [2, 4] float32", Function.SAME),
        ("[2, 4] float64 against [2, 8] float32", Function.ANOTHER),
        ("[2, 4] float64 against [2, 4] bfloat16", Function.ANOTHER),
    ],
)
def test_numbers_that_are_float32_all_the_same_may_leave_in_either_type(why: str, function: Function) -> None:
    """Features that one side works out in float64 and hands on in float32, which the other hands on in float64."""
    there = other_bits(0.0, shape=None, why=why)
    for given, says in ((torch.ones(2), function), (torch.ones(2, dtype=torch.float64), Function.ANOTHER)):
        both: Any = (Recorded(THIRD, x=given), None)
        assert judged(other_bits(6e-8), there, floor_of_m(float64=both))[0] is says
        assert judged(other_bits(1e-5), there, floor_of_m(float64=both))[0] is Function.ANOTHER


# --- what the runs certify about themselves


@pytest.mark.parametrize(
    ("what", "compared", "differing", "identical", "equivalent"),
    [
        ("repeats", 10, 0, "identical", "equivalent"),
        ("repeats", 10, 1, "inconclusive", "inconclusive"),
        ("repeats", 0, 0, "inconclusive", "inconclusive"),
        ("unwatched", 10, 1, "inconclusive", "inconclusive"),
        ("restarts", 10, 1, "identical", "diverged"),  # then the noise floor is not that of this step
    ],
)
def test_a_run_that_does_not_certify_itself_is_no_ground_for_agreement(
    reference: Path, folder: Path, tmp_path: Path, what: str, compared: int, differing: int, identical: str,
    equivalent: str,
) -> None:  # fmt: skip
    for plant, verdict in ((None, identical), (rewritten, equivalent)):
        candidate = nest(tmp_path, **({"after_build": plant} if plant else {}))
        write_replay(folder, reference, candidate, rounded() if plant else [])
        seals = [seal_of(open_recording(path).index) for path in (reference, candidate)]
        check = Check(what=what, side="reference", compared=compared, differing=differing)  # type: ignore[arg-type]
        write_evidence(folder / files.OBSERVER, Observer(reference=seals[0], candidate=seals[1], checks=[check]))
        comparison = explained(reference, candidate, folder)
        assert comparison.verdict == verdict, lacking(comparison)
        assert (comparison.exit_code == 0) is (verdict in ("identical", "equivalent"))
        said = plain(title(comparison))
        assert ("does not repeat itself" in said or "recording changed" in said) is (verdict == "inconclusive")
