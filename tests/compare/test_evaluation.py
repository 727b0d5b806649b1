"""How far apart validations may be: held against the steps in both precisions, and features against their audio."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare import compare_recordings
from nest_ssl.compare.evidence import Evidence, Floors, open_evidence
from nest_ssl.compare.findings import Difference, Spot
from nest_ssl.compare.metrics import measure
from nest_ssl.compare.rules.float64 import Float64Rule, shown_by
from nest_ssl.compare.rules.noise_floor import NoiseFloorRule
from nest_ssl.compare.rules.same_function import in_float32
from nest_ssl.compare.rungs.validation import without_weights
from nest_ssl.compare.values import Comparer
from nest_ssl.record.levels import Level
from nest_ssl.recording.clock import Moment, Phase
from nest_ssl.recording.evidence import FloorEntry
from nest_ssl.recording.layout import validation_file
from nest_ssl.recording.reader import open_recording
from nest_ssl.report.document import plain
from nest_ssl.report.sections.proof import lacking_text
from tests.compare.builder import Model, remove
from tests.compare.evidence import entry, output, write_floor
from tests.compare.test_between import run
from tests.compare.test_float64 import in_float64, split
from tests.compare.test_proof import lacking


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


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """As `trained`, once for the same settings, given by their names; to be read alone."""
    return functools.cache(lambda **settings: trained(tmp_path_factory.mktemp("trained") / "nemo", **settings))


def evidence_of(folder: Path, reference: Path, candidate: Path, correct: Path) -> Evidence:
    """A noise floor of three times what a correct rewrite shows."""
    rows: dict[int, list[FloorEntry]] = {step: [] for step in range(4)}
    features = {}
    for rung in compare_recordings(open_recording(reference), open_recording(correct), declared=[]).rungs:
        for one in rung.findings:
            if one.metrics:
                sizes = one.metrics.relative or 0.0, float(one.metrics.max_abs or 0.0), one.metrics.norm or 0.0
                made = entry(one.address, 3 * sizes[0], 3 * sizes[1], sizes[2])
                if rung.name != "validation":
                    rows[one.moment.step].append(made)
                elif one.address.module == "preprocessor":
                    features[one.address] = made
    for step, entries in rows.items():
        write_floor(folder / "evidence", reference, step, entries)
    found = open_evidence(folder / "evidence", open_recording(reference), open_recording(candidate))
    found.features = features
    return found


@pytest.mark.parametrize("features_only", [0.0, 3e-6])
def test_a_bug_of_the_features_in_evaluation_alone_beside_a_rewrite_of_them(
    tmp_path: Path, trained_once: Callable[..., Path], features_only: float
) -> None:
    """Features are float32 even in float64, so that the steps show how far a rewrite of them goes, and no more."""
    made = {name: trained_once(rewrite=name not in ("nemo", "a"), features_only=off, double=name in ("a", "b"))
            for name, off in (("nemo", 0.0), ("correct", 0.0), ("nest", features_only), ("a", 0.0),
                              ("b", features_only))}  # fmt: skip
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
    assert "lacks_validation_floor" not in lacking(found)
    evidence.features = {}  # as in evidence of before it was measured
    found = compare_recordings(
        open_recording(made["nemo"]), open_recording(made["nest"]), declared=[], evidence=evidence
    )
    assert found.verdict == "diverged" and "lacks_validation_floor" in lacking(found)
    note = next(note for note in found.proof.lacking if note.kind == "lacks_validation_floor")
    assert "preprocessor" in plain(lacking_text(note))


@pytest.mark.parametrize(("eval_only", "verdict"), [(0.0, "equivalent"), (1e-7, "diverged"), (1e-9, "diverged")])
def test_a_bug_of_evaluation_alone_beside_a_correct_rewrite(
    tmp_path: Path, trained_once: Callable[..., Path], eval_only: float, verdict: str
) -> None:
    """Weights that are apart by rounding excuse no validation that float64 shows to be another function."""
    reference, candidate = (trained_once(rewrite=rewrite, eval_only=eval_only * rewrite) for rewrite in (False, True))
    sides = open_recording(reference), open_recording(candidate)
    evidence = evidence_of(tmp_path, reference, candidate, trained_once(rewrite=True, eval_only=0.0))
    made = [trained_once(rewrite=rewrite, eval_only=eval_only * rewrite, double=True) for rewrite in (False, True)]
    doubles = [Path(shutil.copytree(each, tmp_path / name)) for each, name in zip(made, "ab", strict=True)]
    evidence.float64 = open_recording(doubles[0]), open_recording(doubles[1])
    found = compare_recordings(*sides, declared=[], evidence=evidence)
    assert found.verdict == verdict, found.proof.float64
    first = found.proof.float64.first
    assert (first and (first.rung, first.address.module)) == (("validation", "encoder") if eval_only else None)
    assert ("lacks_float64" in lacking(found)) is (eval_only > 0)
    assert [one.phase for one in found.proof.born] == (["validation"] if eval_only else [])
    if eval_only == 1e-9:
        assert lacking(found) == ["lacks_float64"], "in float32 it is no difference"
    for each in doubles:  # what float64 does not have is not waived either
        remove(each, validation_file(0))
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
    entries = {first: entry(first, 1e-7, 1e-7), M: entry(M, 1e-7, 1e-7)}
    evidence = Evidence(floors={(0, 0): Floors(entries, {}, 4)}, features={first: entry(first, 1e-6, 1e-6)})
    rule = Float64Rule(evidence, {(0, first): 1e-7, (0, M): 1e-7}, frozenset({first}))
    at = Moment(1, Phase.VALIDATION)
    assert rule.judge(Spot("validation", at, first), measure(one, one + features, 0.0, 0.0)).within
    assert rule.judge(Spot("validation", at, M), measure(one, one + off, 0.0, 0.0)).within is within
    later = Spot("validation", Moment(2, Phase.VALIDATION), M)  # whose own features are not
    assert not rule.judge(later, measure(one, one + 4e-7, 0.0, 0.0)).within
    assert not rule.judge(Spot("validation", at, first), measure(one, one * torch.nan, 0.0, 0.0)).within


@pytest.mark.parametrize(("size", "direction", "within"), [
    (7.7e-8, 0.0, True), (2e-7, 0.0, True), (4e-7, 0.0, False), (7.7e-8, 3e-6, False),
])  # fmt: skip
def test_a_rewrite_may_show_in_the_shapes_of_a_validation_alone(size: float, direction: float, within: bool) -> None:
    """Where the steps have the same bits, what is float32 even there may be a last place or two apart, and what comes
    behind it as far as the floor of the steps takes that."""
    first, at = output("features"), Moment(1, Phase.VALIDATION)
    entries = {first: entry(first, 1e-6, 1e-6), M: entry(M, 5e-7, 5e-7)}
    evidence = Evidence(floors={(0, 0): Floors(entries, {}, 4)})
    for single in (frozenset({"features"}), frozenset[str]()):
        rule = Float64Rule(evidence, single=single)
        judged = rule.judge(Spot("validation", at, first), measure(*drawn(size, direction), 0.0, 0.0))
        assert judged.within is (within and bool(single))
        for behind, most in ((size, judged.within), (4 * size, False)):
            metrics = measure(*drawn(behind, 0.0), 0.0, 0.0)
            assert rule.judge(Spot("validation", at, M), metrics).within is most


def test_which_parts_compute_in_float32_in_float64_as_well(tmp_path: Path) -> None:
    single = open_recording(trained(tmp_path / "a", features_only=0.0, double=True))
    double = open_recording(in_float64(tmp_path, "nemo"))  # whose preprocessor is given audio in float64
    parts = {"preprocessor", "quantizer"}
    assert [in_float32(one, parts) for one in (single, double)] == [{"preprocessor"}, frozenset()]
    assert in_float32(single, {"quantizer"}) == frozenset()


def drawn(size: float, direction: float, elements: int = 4000) -> tuple[Tensor, Tensor]:
    """Features, and the same so far apart: by noise, as rounding is, and times one number."""
    generator = torch.Generator().manual_seed(0)
    given, noise = (torch.randn(elements, dtype=torch.float64, generator=generator) for _ in range(2))
    return given, given * (1 + direction) + size * noise


@pytest.mark.parametrize(("size", "direction", "within"), [
    (2e-7, 0.0, True), (6e-7, 0.0, False), (1e-7, 3e-6, False),
])  # fmt: skip
@pytest.mark.parametrize("rule", ["float64", "noise floor"])
def test_features_of_a_validation_whose_floor_was_not_measured_are_as_those_of_the_steps(
    rule: str, size: float, direction: float, within: bool
) -> None:
    """No further apart, and never by one factor: rounding has no direction."""
    first, at = output("features"), Moment(1, Phase.VALIDATION)
    entries = {address: entry(address, 1e-7, 1e-6) for address in (first, M)}
    evidence = Evidence(floors={(0, 0): Floors(entries, {}, 4)}, growths={(1, 0): 100.0})
    evidence.unweighted = frozenset({"features"})
    in64 = Float64Rule(evidence, {(0, first): 1e-7, (0, M): 1e-7}, frozenset({first}))
    judge = in64 if rule == "float64" else NoiseFloorRule(evidence)
    metrics = measure(*drawn(size, direction), 0.0, 0.0)
    assert judge.judge(Spot("validation", at, first), metrics).within is within
    behind = judge.judge(Spot("validation", at, M), measure(*drawn(2.5 * size, 0.0), 0.0, 0.0))
    # What has weights is excused by these in float32.
    assert behind.within is (within or rule == "noise floor" or 2.5 * size < 3e-7)


@pytest.mark.parametrize(("size", "direction", "measured", "single", "double"), [
    (2e-5, 0.0, 1e-6, False, False), (2e-5, 0.0, 1e-4, True, True),  # telephone speech
    (1e-6, 0.0, 1e-6, True, False), (2e-7, 0.0, 1e-6, True, True),  # as the steps'
    (2e-5, 3e-4, 1e-4, False, False),
])  # fmt: skip
def test_features_of_a_validation_are_held_against_their_own_floor(
    size: float, direction: float, measured: float, single: bool, double: bool
) -> None:
    """What rounding does to them depends on the audio, and was measured of that very audio."""
    first, at = output("features"), Moment(1, Phase.VALIDATION)
    entries = {address: entry(address, 1e-6, 1e-6) for address in (first, M)}
    evidence = Evidence(floors={(0, 0): Floors(entries, {}, 4)}, unweighted=frozenset({"features"}))
    evidence.features = {first: entry(first, measured, 1e-6)}
    in64 = Float64Rule(evidence, {(0, first): 1e-7, (0, M): 1e-7}, frozenset({first}))
    metrics = measure(*drawn(size, direction), 0.0, 0.0)
    for rule, within, once in ((NoiseFloorRule(evidence), single, 1e-6), (in64, double, 1e-7)):
        assert rule.judge(Spot("validation", at, first), metrics).within is within
        behind = rule.judge(Spot("validation", at, M), measure(*drawn(2 * size, 0.0), 0.0, 0.0))
        assert behind.within is (within or 2 * size <= 3 * once)
    evidence.features = {}
    assert Float64Rule(evidence, in64.shown, in64.silent).judge(Spot("validation", at, first), metrics).within is (
        size < 3e-7
    )


@pytest.mark.parametrize(("row", "within"), [(1e-6, False), (2e-5, True), (None, True)])
def test_most_rows_of_features_are_held_against_those_of_their_floor(row: float | None, within: bool) -> None:
    """Where a few rows are rounding alone, these are most of the whole's floor; files of before have none of rows."""
    first, at = output("features"), Moment(1, Phase.VALIDATION)
    entries = {first: entry(first, 1e-6, 1e-6)}
    evidence = Evidence(floors={(0, 0): Floors(entries, {}, 4)}, unweighted=frozenset({"features"}))
    evidence.features = {first: entry(first, 1e-4, 1e-6).model_copy(update={"row": row})}
    given, other = (side.view(40, 100) for side in drawn(2e-5, 0.0))
    for rule in (NoiseFloorRule(evidence), Float64Rule(evidence, {(0, first): 1e-6}, frozenset({first}))):
        found = Comparer(rule).leaf(Spot("validation", at, first), given, other)
        assert found is not None and found.within is within


def test_which_parts_have_no_weights(tmp_path: Path) -> None:
    made = open_recording(trained(tmp_path / "nemo"))
    assert without_weights(made) == {"preprocessor", "quantizer"}
    batches = made.validations()[0]["batches"]  # type: ignore[index]
    assert [output["module"] for output in batches[0]["outputs"]][:3] == ["preprocessor", "quantizer", "masking"]


def test_a_level_without_batches_is_compared_beside_evidence(tmp_path: Path) -> None:
    sides = [run(tmp_path / name, level=Level("operators")) for name in ("nemo", "nest")]
    assert open_recording(sides[0]).validations() and not (sides[0] / "step_0/batch.pt").exists()
    found = [compare_recordings(*map(open_recording, sides), evidence=evidence) for evidence in (None, Evidence())]
    assert [(one.verdict, one.exit_code) for one in found] == [("inconclusive", 2)] * 2
