"""Both trainers in float64, end to end: what it shows, and how far; and what the runs certify about themselves."""

from __future__ import annotations

import datetime
import math
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare import compare_recordings
from nest_ssl.compare.evidence import Evidence, Floors, open_evidence
from nest_ssl.compare.findings import Difference, Spot
from nest_ssl.compare.metrics import is_scaled, measure
from nest_ssl.compare.rules.float64 import Float64Rule, shown_by
from nest_ssl.compare.rules.known import Known
from nest_ssl.compare.rules.noise_floor import NoiseFloorRule, quieter_at_most
from nest_ssl.compare.rungs.validation import without_weights
from nest_ssl.config.parts import Preprocessor
from nest_ssl.model.features import FilterbankFeatures
from nest_ssl.recording import evidence as files
from nest_ssl.recording.clock import Moment, Phase
from nest_ssl.recording.evidence import Check, FloorEntry, Observer, seal_of, write_evidence
from nest_ssl.recording.layout import validation_file
from nest_ssl.recording.reader import open_recording
from nest_ssl.report.document import plain
from nest_ssl.report.sections.headline import title
from tests.compare.builder import Model, Plan, edit_config, edit_tensors, record, remove
from tests.compare.evidence import entry, explained, output, write_floor, write_replay
from tests.compare.test_between import run
from tests.compare.test_proof import ONE_STEP, floors, folder, lacking, nest, reference, rewritten, rounded

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


# --- validations, with other weights


def trained(
    out: Path, eval_only: float = 0.0, rewrite: bool = True, double: bool = False, features_only: float | None = None
) -> Path:
    """Four steps and a validation; in evaluation the last layer gives `eval_only` of itself too much.

    Args:
        features_only: the same of features, which are float32 in any precision and written otherwise in a rewrite.
    """

    def build() -> nn.Module:
        model = Model()
        split(model) if rewrite else None
        layer, features = model.encoder.layers[1], model.preprocessor.forward

        def single(audio: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
            made = features(audio.float(), length)[0]
            made = torch.log(made.exp() * 3) - math.log(3) if rewrite else made
            made = made if model.training else made * (1.0 + (features_only or 0.0))
            return made.double() if double else made, length

        forward = layer.forward
        layer.forward = lambda x, pad_mask=None: forward(x, pad_mask) * (1.0 if layer.training else 1.0 + eval_only)
        if double:
            model.double()
            model.preprocessor.forward = lambda audio, length: features(audio.double(), length)
        if features_only is not None:
            model.preprocessor.forward = single
        return model

    return run(out, build=build)


def evidence_of(folder: Path, reference: Path, candidate: Path, correct: Path) -> Evidence:
    """A noise floor of three times what a correct rewrite shows."""
    rows: dict[int, list[FloorEntry]] = {step: [] for step in range(4)}
    for rung in compare_recordings(open_recording(reference), open_recording(correct), declared=[]).rungs:
        for one in rung.findings:
            if one.metrics and rung.name != "validation":
                sizes = one.metrics.relative or 0.0, float(one.metrics.max_abs or 0.0), one.metrics.norm or 0.0
                rows[one.moment.step].append(entry(one.address, 3 * sizes[0], 3 * sizes[1], sizes[2]))
    for step, entries in rows.items():
        write_floor(folder / "evidence", reference, step, entries)
    return open_evidence(folder / "evidence", open_recording(reference), open_recording(candidate))


@pytest.mark.parametrize("features_only", [0.0, 3e-6])
def test_a_bug_of_the_features_in_evaluation_alone_beside_a_rewrite_of_them(
    tmp_path: Path, features_only: float
) -> None:
    """Features are float32 even in float64, so that the steps show how far a rewrite of them goes, and no more."""
    made = {name: trained(tmp_path / name, rewrite=name != "nemo", features_only=off, double=double)
            for name, off, double in (("nemo", 0.0, False), ("correct", 0.0, False), ("nest", features_only, False),
                                      ("b", features_only, True))}  # fmt: skip
    made["a"] = trained(tmp_path / "a", rewrite=False, features_only=0.0, double=True)
    evidence = evidence_of(tmp_path, made["nemo"], made["nest"], made["correct"])
    evidence.float64 = open_recording(made["a"]), open_recording(made["b"])
    found = compare_recordings(
        open_recording(made["nemo"]), open_recording(made["nest"]), declared=[], evidence=evidence
    )
    apart = found.proof.float64
    assert apart.first is not None and apart.first.address.module == "preprocessor"
    assert apart.agreement == ("differs" if features_only else "float32 values")
    assert (apart.first.rung == "validation") is bool(features_only)
    assert ("lacks_validation" in lacking(found) or "lacks_float64" in lacking(found)) is bool(features_only)
    assert [note.kind for note in found.unseen if note.kind == "unseen_evaluation"] == ["unseen_evaluation"]


@pytest.mark.parametrize(("eval_only", "verdict"), [(0.0, "equivalent"), (1e-7, "diverged"), (1e-9, "diverged")])
def test_a_bug_of_evaluation_alone_beside_a_correct_rewrite(tmp_path: Path, eval_only: float, verdict: str) -> None:
    """Weights that are apart by rounding excuse no validation that float64 shows to be another function."""
    reference, candidate = trained(tmp_path / "nemo", rewrite=False), trained(tmp_path / "nest", eval_only)
    sides = open_recording(reference), open_recording(candidate)
    evidence = evidence_of(tmp_path, reference, candidate, trained(tmp_path / "correct"))
    doubles = trained(tmp_path / "a", rewrite=False, double=True), trained(tmp_path / "b", eval_only, double=True)
    evidence.float64 = open_recording(doubles[0]), open_recording(doubles[1])
    found = compare_recordings(*sides, declared=[], evidence=evidence)
    assert found.verdict == verdict, found.proof.float64
    first = found.proof.float64.first
    assert (first and (first.rung, first.address.module)) == (("validation", "encoder") if eval_only else None)
    assert ("lacks_float64" in lacking(found)) is (eval_only > 0)
    assert [one.phase for one in found.proof.born] == (["validation"] if eval_only else [])
    if eval_only == 1e-9:
        assert lacking(found) == ["lacks_float64"], "in float32 it is no difference"
    for made in doubles:  # what float64 does not have is not waived either
        remove(made, validation_file(0))
    evidence.float64 = open_recording(doubles[0]), open_recording(doubles[1])
    found = compare_recordings(*sides, declared=[], evidence=evidence)
    assert found.verdict == "diverged" and "lacks_validation" in lacking(found)


M = output("m")


def floor(relative: float = 1e-7, max_abs: float = 1e-7) -> Evidence:
    return Evidence(floors={(0, 0): Floors({M: entry(M, relative, max_abs)}, {}, 4)})


def test_what_is_noise_in_training_is_no_measure_of_a_validation() -> None:
    noise, one = torch.full((8,), 1e-18, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    place, there = Spot("forward", Moment(0, Phase.FORWARD), M), Spot("validation", Moment(1, Phase.VALIDATION), M)
    for (given, off), measured in (((noise, -2 * noise), False), ((one, 1e-7 * one), True)):
        metrics = measure(given, given + off, 0.0, 0.0)
        judgement = Float64Rule(floor(relative=1.4, max_abs=1e-9)).judge(place, metrics)
        found = place.finding(Difference.VALUES, 0, 0, metrics=metrics, judgement=judgement)
        shown = shown_by([found])
        assert bool(shown) is measured
        assert not Float64Rule(floor(), shown).judge(there, measure(one, one + 1e-6, 0.0, 0.0)).within
        assert Float64Rule(floor(), shown).judge(there, measure(one, one + 2e-7, 0.0, 0.0)).within is measured


@pytest.mark.parametrize(("features", "off", "within"), [
    (1e-7, 2e-7, True), (1e-7, 4e-7, False), (8e-7, 2e-6, True), (8e-7, 4e-6, False), (0.0, 4e-7, False),
])  # fmt: skip
def test_a_validation_may_be_further_apart_as_far_as_its_features_are(
    features: float, off: float, within: bool
) -> None:
    """Quiet audio: what float32 makes of it is further apart, whoever computes it."""
    one, first = torch.ones(8, dtype=torch.float64), output("features")
    evidence = floor()
    evidence.quieter = {1: 100.0}
    rule = Float64Rule(evidence, {(0, first): 1e-7, (0, M): 1e-7}, frozenset({first}))
    at = Moment(1, Phase.VALIDATION)
    assert rule.judge(Spot("validation", at, first), measure(one, one + features, 0.0, 0.0)).within
    assert rule.judge(Spot("validation", at, M), measure(one, one + off, 0.0, 0.0)).within is within
    later = Spot("validation", Moment(2, Phase.VALIDATION), M)  # whose own features are not
    assert not rule.judge(later, measure(one, one + 4e-7, 0.0, 0.0)).within
    assert not rule.judge(Spot("validation", at, first), measure(one, one * torch.nan, 0.0, 0.0)).within


def drawn(size: float, direction: float, elements: int = 4000) -> tuple[Tensor, Tensor]:
    """Features, and the same so far apart: by noise, as rounding is, and times one number."""
    generator = torch.Generator().manual_seed(0)
    given, noise = (torch.randn(elements, dtype=torch.float64, generator=generator) for _ in range(2))
    return given, given * (1 + direction) + size * noise


@pytest.mark.parametrize(("quieter", "size", "direction", "within"), [
    (1.0, 2e-7, 0.0, True), (1.0, 6e-7, 0.0, False),  # as loud as the steps
    (8.0, 6e-7, 0.0, False), (64.0, 6e-7, 0.0, True), (64.0, 1e-6, 0.0, False),
    (1e6, 9e-7, 0.0, True), (1e6, 2e-6, 0.0, False),
    (1.0, 1e-7, 3e-6, False), (1e6, 1e-7, 3e-6, False), (1e6, 8e-7, 3e-6, False),
])  # fmt: skip
@pytest.mark.parametrize("rule", ["float64", "noise floor"])
def test_features_of_a_validation_are_held_against_its_audio(
    rule: str, quieter: float, size: float, direction: float, within: bool
) -> None:
    """No further apart than quiet audio makes them, and never by one factor: rounding has no direction."""
    first, at = output("features"), Moment(1, Phase.VALIDATION)
    entries = {address: entry(address, 1e-7, 1e-6) for address in (first, M)}
    evidence = Evidence(floors={(0, 0): Floors(entries, {}, 4)}, growths={(1, 0): 100.0})
    evidence.quieter, evidence.unweighted = {1: quieter}, frozenset({"features"})
    in64 = Float64Rule(evidence, {(0, first): 1e-7, (0, M): 1e-7}, frozenset({first}))
    judge = in64 if rule == "float64" else NoiseFloorRule(evidence)
    metrics = measure(*drawn(size, direction), 0.0, 0.0)
    assert judge.judge(Spot("validation", at, first), metrics).within is within
    behind = judge.judge(Spot("validation", at, M), measure(*drawn(2.5 * size, 0.0), 0.0, 0.0))
    # What has weights is excused by these in float32.
    assert behind.within is (within or rule == "noise floor" or 2.5 * size < 3e-7)


def test_features_summed_in_another_order_are_within_what_their_loudness_allows() -> None:
    """The port's own, of noise: what the bound is made from."""
    one, other = (FilterbankFeatures(Preprocessor()).eval() for _ in range(2))
    swapped = torch.randperm(one.fb.shape[2], generator=torch.Generator().manual_seed(0))
    other.mel = lambda x: torch.matmul(one.fb[..., swapped], power(one, x)[:, swapped])
    audio = 0.1 * torch.randn(4, 16000, generator=torch.Generator().manual_seed(1))
    sizes = {}
    for quieter in (1, 10, 100, 1000):
        given = (audio / quieter, torch.full((4,), 16000))
        metrics = measure(one(*given)[0], other(*given)[0], 0.0, 0.0)
        sizes[quieter] = metrics.relative or 0.0
        assert not is_scaled(metrics) and abs((metrics.factor or 0.0) - 1.0) < 1e-7
    assert 0 < sizes[1] < sizes[1000], sizes
    for quieter, size in sizes.items():
        assert size <= sizes[1] * quieter_at_most(Evidence(quieter={0: float(quieter)}), 0), sizes


def power(features: FilterbankFeatures, x: Tensor) -> Tensor:
    """The power spectrum, of which `mel` is a product."""
    whole = FilterbankFeatures.mel
    spectrum: list[Tensor] = []
    with unittest.mock.patch("torch.matmul", lambda _, power: spectrum.append(power) or power):
        whole(features, x)
    return spectrum[0]


def test_which_parts_have_no_weights_and_how_much_quieter_a_validation_is(tmp_path: Path) -> None:
    made = open_recording(trained(tmp_path / "nemo"))
    unweighted, quieter = without_weights(made)
    assert unweighted == {"preprocessor", "quantizer"} and 1.0 <= quieter[2] < 2.0
    batches = made.validations()[0]["batches"]  # type: ignore[index]
    assert [output["module"] for output in batches[0]["outputs"]][:3] == ["preprocessor", "quantizer", "masking"]

    def quiet(found: dict[str, Any]) -> None:
        found["batches"][0]["fields"]["audio"][1] *= 1e-2

    edit_tensors(tmp_path / "nemo", validation_file(0), quiet)
    assert without_weights(open_recording(tmp_path / "nemo"))[1][2] > 50


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
