"""The noise floor: training is what it was, every tensor has one, it holds, and it knows a zero when it sees one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from train_nest import NEST

from nest_ssl.base.rng import restore_generators
from nest_ssl.compare.findings import Finding
from nest_ssl.compare.rules.noise_floor import LOOK, ROUNDING, floors_of
from nest_ssl.config.compose import compose
from nest_ssl.config.parts import Quantizer
from nest_ssl.config.section import read as read_section
from nest_ssl.model.quantizer import RandomProjectionVectorQuantizer
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.calls import Call
from nest_ssl.recording.evidence import FloorEntry, NoiseFloor, read_evidence
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run.experiment import run
from nest_ssl.run.floor import repeats, state
from nest_ssl.run.floor.deviations import Tally, rounding_of_a_sum
from nest_ssl.run.floor.margins import Margins
from nest_ssl.run.floor.state import SavedState, move_by_one_ulp
from nest_ssl.run.floor.values import StepValues
from nest_ssl.train.module import NestModule
from tests import test_planted_faults as planted
from tests.test_planted_faults import STARTS, WHOLE, recorded_once

# The third utterance is shorter: padding. Size is not the subject; in short audio blocks must be masked more often.
TINY = ["size=tiny", "batches=3", "model.train_ds.batch_size=3", "model.encoder.n_layers=1",
        "model.encoder.subsampling_conv_channels=4", *STARTS, "model.masking.mask_prob=0.05"]  # fmt: skip
HERE = ["model.train_ds.num_workers=0", "model.validation_ds.num_workers=0", "model.train_ds.pin_memory=false",
        "model.validation_ds.pin_memory=false"]  # fmt: skip
KINDS = {
    "quick": [],
    "everything random, clipped, accumulated, positions extended": [
        "run=full", *HERE, "model.train_ds.batch_size=2", "model.encoder.pos_emb_max_len=100",
        "trainer.gradient_clip_val=0.01", "trainer.accumulate_grad_batches=2", "batches=4",
    ],
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
}  # fmt: skip


def record(target: Path, *overrides: str) -> Recording:
    assert run(NEST, [*TINY, *overrides, f"output_dir={target}"]) == 0
    return open_recording(target)


def read(recording: Path, step: int) -> NoiseFloor:
    return read_evidence(recording / f"step_{step}" / "noise_floor.json", NoiseFloor)


def by_address(floor: NoiseFloor) -> dict[Address, FloorEntry]:
    return {entry.place.address: entry for entry in floor.entries}


def content(recording: Recording) -> dict[str, Any]:
    """Every tensor's digest, and every state of every generator."""
    random = {step: json.loads((recording.path / f"step_{step}" / "rng.json").read_text()) for step in recording.steps}
    return {"tensors": recording.index.tensors, "rng": random, "before": recording.index.rng}


def losses(printed: str) -> str:
    """What the line at the end says of the training."""
    return next(line.partition(", log:")[0] for line in printed.splitlines() if "train_loss" in line)


# --- training is untouched


@pytest.fixture
def short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats behind every second step, so that recorded steps follow them; how many they are is not the subject."""
    monkeypatch.setattr(repeats, "LONGEST", 2)
    monkeypatch.setattr(repeats, "HELD_OUT", 1)


@pytest.mark.usefixtures("short_chains")
@pytest.mark.parametrize("kind", KINDS)
def test_training_has_the_bits_that_it_has_without(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, gradients, optimizer, generators and batches of steps before and behind the repeats, and the losses."""
    alone = record(tmp_path / "alone", *KINDS[kind], "save_steps=all")
    summary = losses(capsys.readouterr().out)
    measured = record(tmp_path / "measured", *KINDS[kind], "save_steps=all", "noise_floor=1")
    assert content(measured) == content(alone)
    assert losses(capsys.readouterr().out) == summary
    assert all((measured.path / f"step_{step}" / "noise_floor.json").is_file() for step in measured.steps)
    assert [read(measured.path, step).restart_differing for step in measured.steps] == [0] * len(measured.steps)
    assert [read(measured.path, step).since for step in measured.steps] == [0, 0, 2, 2][: len(measured.steps)]
    assert all(read(measured.path, step).making for step in measured.steps)


LARGE_STEPS = ["run=full", *HERE, "model.optim.lr=100", "batches=2", "save_steps=0,1"]
# Faults in the first layer: how many there are is not the subject.
ONE_LAYER = "model.encoder.n_layers=1"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("alone") / "nest", *LARGE_STEPS)


@pytest.mark.usefixtures("short_chains")
@pytest.mark.parametrize("forgotten", ["restore_generators", "write_weights", "write_settings"])
def test_what_is_not_put_back_is_seen(
    tmp_path: Path, alone: Recording, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """The check above can fail: each is left out once the repeats of the first step are done."""
    monkeypatch.setattr(repeats, "LONGEST", 1)
    put_back, original = SavedState.put_back, getattr(state, forgotten)

    def forgetful(self: SavedState, trainer: Any, model: Any, again: bool) -> None:
        monkeypatch.setattr(state, forgotten, original if again else lambda *_: None)
        put_back(self, trainer, model, again)
        monkeypatch.setattr(state, forgotten, original)

    monkeypatch.setattr(SavedState, "put_back", forgetful)
    # The last repeated step leaves generators and settings as training did; here it does not.
    monkeypatch.setattr(repeats, "restore_generators", lambda states: restore_generators(states) or torch.rand(1))
    monkeypatch.setattr(repeats, "write_settings", lambda optimizer, _: optimizer.param_groups[0].update(lr=1.0))
    assert content(record(tmp_path / "measured", *LARGE_STEPS, "noise_floor=1")) != content(alone)


# --- the floor itself


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recorded steps, with their floor."""
    target = tmp_path_factory.mktemp("floor") / "nest"
    planted.record(target, None, *WHOLE, "noise_floor=8")
    return target


def worst_ratio(reference: Path, candidate: Path, least: int = 100) -> tuple[float, Finding]:
    """By how many floors the candidate is away at most, and where; every tensor that differs has a floor."""
    floors = {step: by_address(read(reference, step)) for step in (0, 1)}
    rungs = [one for one in planted.compare(reference, candidate).rungs if one.name != "validation"]  # not repeated
    findings = [finding for rung in rungs for finding in rung.findings if finding.metrics]
    assert len(findings) > least
    ratios = []
    for finding in findings:
        entry = floors[finding.moment.step][finding.address]
        assert finding.metrics is not None
        size, found = finding.metrics.relative, finding.metrics
        if size is not None and math.isfinite(size):
            whole = (size, float(found.max_abs or 0.0), entry, found.norm or 0.0, found.eps, found.elements)
            ratios.append((floors_of(*whole), finding))
    return max(ratios, key=lambda pair: pair[0])


def test_the_fast_mode_lies_within_it(reference: Path, tmp_path: Path) -> None:
    """Its optimizer rounds otherwise, and the step that follows starts from that."""
    planted.record(tmp_path / "fast", None, *WHOLE, "numerics=fast")
    rounding, _ = worst_ratio(reference, tmp_path / "fast", least=10)
    assert 0 < rounding < LOOK


def test_a_correct_rewrite_lies_within_it_and_bugs_do_not(
    reference: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    twin = recorded_once(tmp_path_factory, None, *WHOLE)  # the control
    assert [one for rung in planted.compare(reference, twin).rungs for one in rung.findings if one.metrics] == []
    rounding, _ = worst_ratio(reference, recorded_once(tmp_path_factory, planted.split_k_product, *WHOLE))
    factor, _ = worst_ratio(reference, recorded_once(tmp_path_factory, planted.residual_factor, *WHOLE))
    eps, where = worst_ratio(reference, recorded_once(tmp_path_factory, planted.norm_eps, *WHOLE))
    print(f"floors: rewrite {rounding:.2f}, factor 1.0000002 {factor:.2f}, eps {eps:.1f} at {where.address}")
    assert rounding < 1.5 and eps > 3
    assert 0.1 < factor < 3  # a fault as small as rounding: the floor alone passes it, float64 has to find it


def test_two_repeats_that_did_not_make_it_check_it(reference: Path) -> None:
    """Of ten that are alike, one of two given ones is the largest in every fifth tensor: it may lie above a little."""
    for step in (0, 1):
        floor = read(reference, step)
        assert (floor.repeats, floor.held_out, floor.flipped, floor.restart_differing) == (8, 2, 0, 0)
        assert floor.restart_compared == len(floor.entries) > 800
        ratios = [e.held_out / e.relative_largest for e in floor.entries if 0 < e.relative_largest < math.inf]
        assert 0.5 < median(ratios) < 1.0
        assert sum(ratio > 1.2 for ratio in ratios) < 0.1 * len(ratios) and max(ratios) < 3, max(ratios)
        assert all(e.relative_typical <= e.relative_largest for e in floor.entries)


def test_a_gradient_whose_true_value_is_zero_is_recognised(reference: Path) -> None:
    """By its floor, whatever its name: rounding is all that there is."""
    for step in (0, 1):
        gradients = [e for e in read(reference, step).entries if e.place.kind == Kind.GRADIENT.value]
        zero = {f"{e.place.module}.{e.place.slot}" for e in gradients if e.relative_largest > 0.1}
        layers = [f"encoder.layers.{layer}." for layer in (0, 1)]
        assert zero == {
            layer + name for layer in layers for name in ("self_attn.linear_k.bias", "conv.depthwise_conv.bias")
        }
        assert max(e.relative_largest for e in gradients if f"{e.place.module}.{e.place.slot}" not in zero) < 1e-3


def test_the_nearest_tokens_are_listed_with_their_margins(reference: Path) -> None:
    """Silence is as far from every code, so a token there is none's own; of the others the ten nearest, at least."""
    margins = read(reference, 0).margins
    assert all(m.place.module == "quantizer" and len(m.index) == 3 for m in margins)
    assert [m.margin for m in margins] == sorted(m.margin for m in margins)
    silent, spoken = ([m for m in margins if (m.margin < 1e-14) == tied] for tied in (True, False))
    assert silent and all(m.index[0] == 2 and m.margin <= m.floor and not m.others for m in silent)  # behind its end
    assert len(spoken) >= 10 and all(m.floor < m.margin and m.floor < 1e-5 for m in spoken)


def test_a_token_between_two_codes_flips_and_its_margin_says_why() -> None:
    """The runner-up of one token is moved to where it is as near, but for less than rounding does."""
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.quantizer = RandomProjectionVectorQuantizer(read_section(Quantizer, compose(["size=tiny"]).model.quantizer))
    features = torch.randn(1, 80, 64)
    frames = features.transpose(1, 2).reshape(1, 8, -1)
    row = torch.nn.functional.normalize(model.quantizer.proj(frames), dim=-1)[0, 3].double()
    codes = model.quantizer.codebooks[0]
    nearest, second = (distances := (codes - row).norm(dim=1)).argsort()[:2]
    codes[second] = row + (codes[second] - row) * (distances[nearest] * (1 + 1e-10) / distances[second])
    margins, tokens = Margins(model), []
    for repeat in range(9):
        moved = features.clone()
        if repeat:
            move_by_one_ulp([moved], torch.Generator().manual_seed(repeat))
        margins.attach()
        tokens.append(model.quantizer(moved)[1][0, 3, 0].item())
        margins.detach()
    first, *others = margins.found()
    assert {*tokens, *(first.others or ())} == {int(nearest), int(second)} and first.others != tokens[:1]
    assert first.index == [0, 3, 0] and first.margin < first.floor < 1e-5
    assert first.flips == sum(token != tokens[0] for token in tokens) > 0 and not any(other.flips for other in others)
    assert len(others) == 7 and all(margin.margin > 100 * margin.floor for margin in others)


def on_edge(model: NestModule) -> None:
    """Tokens that the last bits of a feature choose: seven repeats of eight flip them."""

    def chosen(forward: Callable[..., Any], input_signal: torch.Tensor) -> Any:
        vectors, tokens = forward(input_signal=input_signal)
        tokens[:] = int(input_signal[0, 40, 20].view(torch.int32)) & 7
        return vectors, tokens

    planted.patch_forward(model.quantizer, chosen)


def on_edge_and_split(model: NestModule) -> None:
    on_edge(model)
    planted.split_k_product(model)


def on_edge_and_scaled(model: NestModule) -> None:
    on_edge(model)
    model.encoder.layers[0].feed_forward1.linear1.bias.register_hook(lambda gradient: gradient * 1.0003)


def norm_by_hand(model: NestModule) -> None:
    norm = model.encoder.layers[0].norm_conv

    def by_hand(_: Callable[..., Any], x: torch.Tensor) -> torch.Tensor:
        centred = x.float() - x.float().mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias

    planted.patch_forward(norm, by_hand)


def x_1_1(forward: Callable[..., Any], *args: Any, **more: Any) -> Any:
    return forward(*args, **more) * 1.1


def test_in_bfloat16_a_correct_rewrite_lies_within_it_and_a_large_fault_does_not(tmp_path: Path) -> None:
    """There rounding is so large that a layer's output x 1.002 hides in it: replay and float64 have to find that."""
    half = (ONE_LAYER, "trainer.precision=bf16-mixed")
    planted.record(tmp_path / "nest", None, *half, "noise_floor=8")
    planted.record(tmp_path / "rewrite", norm_by_hand, *half)
    planted.record(tmp_path / "fault", lambda model: planted.patch_forward(model.encoder.layers[0], x_1_1), *half)
    rounding, _ = worst_ratio(tmp_path / "nest", tmp_path / "rewrite")
    fault, where = worst_ratio(tmp_path / "nest", tmp_path / "fault")
    print(f"floors in bfloat16: rewrite {rounding:.2f}, output x 1.1 {fault:.1f} at {where.address}")
    assert rounding < LOOK < fault


def test_where_a_token_flips_in_nearly_all_repeats_they_are_trained_again_without(tmp_path: Path) -> None:
    """With the flips in it, the floor would let one gradient x 1.0003 pass."""
    planted.record(tmp_path / "nest", on_edge, *(settings := (ONE_LAYER, *planted.UTTERANCES)), "noise_floor=6")
    floors = [read(tmp_path / "nest", step) for step in (0, 1)]
    assert all(one.making == 6 and one.flipped == one.kept > 4 and one.restart_differing == 0 for one in floors)
    wide = {one.place.address: max(one.relative_flipped, one.relative_largest) for one in floors[0].entries}
    planted.record(tmp_path / "rewrite", on_edge_and_split, *settings)
    planted.record(tmp_path / "fault", on_edge_and_scaled, *settings)
    rounding, _ = worst_ratio(tmp_path / "nest", tmp_path / "rewrite")
    fault, where = worst_ratio(tmp_path / "nest", tmp_path / "fault", least=2)
    print(f"floors: rewrite {rounding:.2f}, gradient x 1.0003 {fault:.1f} at {where.address}")
    assert rounding < LOOK < fault
    assert where.metrics is not None and (where.metrics.relative or 0.0) < wide[where.address]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_number_moves_to_a_neighbour(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan], dtype=dtype)
    tensor = torch.cat([torch.randn(1001, generator=torch.Generator().manual_seed(0)).to(dtype), special])
    before = tensor.clone()
    move_by_one_ulp([tensor, whole := torch.arange(3)], torch.Generator().manual_seed(1))
    assert torch.equal(whole, torch.arange(3))
    assert torch.equal(tensor[-5:].nan_to_num(7), special.nan_to_num(7)) and tensor[-4].signbit()
    whole_type = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    steps = (tensor.view(whole_type) - before.view(whole_type))[:-5]
    assert set(steps.tolist()) == {-1, 1} and 400 < (tensor > before)[:-5].sum() < 600


def test_torchs_own_generator_is_not_drawn_from() -> None:
    before = torch.get_rng_state()
    move_by_one_ulp([torch.ones(10)], torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)


def values(weight: float, token: int) -> StepValues:
    call = Call(0, "a", 0, True, [], [], {}, 0, 1, torch.tensor([token]))
    tables = {"gradients": {}, "applied": {}, "before": {}, "optimizer": {}, "buffers": {"b"}}
    return StepValues(calls=[call], outputs={}, loss={}, after={"b": torch.tensor([3.0, weight])}, **tables)


def test_sizes_are_relative_to_the_recorded_one_and_flipped_repeats_are_left_out() -> None:
    tally, recorded = Tally(), values(4.0, 1)
    for repeat, (weight, token) in enumerate([(4.0, 1), (4.5, 1), (3.5, 1), (4.25, 1), (9.0, 2), (4.125, 1), (4.0, 1)]):
        tally.add(recorded, values(weight, token), held_out=repeat > 4)
    found, buffer = tally.entries()
    assert (buffer.norm, buffer.relative_largest, buffer.relative_typical, buffer.held_out) == (5.0, 0.1, 0.1, 0.025)
    assert (buffer.max_abs_largest, buffer.max_abs_typical) == (0.5, 0.5)
    assert (found.flips, found.relative_largest) == (1, 0.0)
    assert (buffer.relative_flipped, found.relative_flipped) == (1.0, 0.0)  # of the repeat that was left out
    assert tally.differing == [0, 1, 1, 1, 2, 1, 0] and tally.compared == 2 and tally.making == [1, 2, 3]


def test_a_flip_makes_no_floor_wider_however_few_repeats_are_without_one() -> None:
    """Seven of eight repeats have a flip, which moves what is behind it twice as far as the fault does."""
    tally, recorded = Tally(), values(4.0, 1)
    for weight, token in [(4.0, 1), (4.01, 1), *[(4.2, 2)] * 7]:
        tally.add(recorded, values(weight, token))
    buffer = tally.entries()[-1]
    eps = torch.finfo(torch.float32).eps
    rewrite, fault = (floors_of(size / 5.0, size, buffer, 5.0, eps, 2) for size in (0.011, 0.1))
    assert rewrite < ROUNDING and fault > LOOK and buffer.relative_flipped > 0.1 / 5.0


def test_a_step_behind_a_flip_is_behind_it() -> None:
    tally, recorded = Tally(), values(4.0, 1)
    tally.add(recorded, recorded)
    assert not tally.add(recorded, values(4.5, 1), behind=False)
    assert tally.add(recorded, values(9.0, 1), behind=True)
    buffer = tally.entries()[-1]
    assert (buffer.relative_largest, buffer.relative_flipped) == (0.1, 1.0)


def test_where_every_repeat_has_a_flip_there_is_no_floor() -> None:
    tally, recorded = Tally(), values(4.0, 1)
    for token in (1, 2, 3):
        tally.add(recorded, values(4.0, token))
    assert tally.entries() == [] and tally.making == []


def test_a_weight_may_be_rounded_the_other_way() -> None:
    """The floor of a weight and of its update is never below two elements by one ulp."""
    assert rounding_of_a_sum(torch.tensor([0.3, -0.75, 0.1])) == math.sqrt(2) * 2.0**-24
    assert rounding_of_a_sum(torch.tensor([3.0])) == 2.0**-22 and rounding_of_a_sum(torch.zeros(3)) == 0
    tally, weight = Tally(), torch.tensor([0.75, 0.5])
    recorded = StepValues([], {}, {}, {"w": None}, {}, {"w": weight - 1e-6}, {"w": weight}, {}, set())
    for repeat in range(3):
        tally.add(recorded, recorded, held_out=repeat == 2)
    parameter, update = tally.entries()
    assert parameter.relative_largest * parameter.norm == pytest.approx(math.sqrt(2) * 2.0**-24)
    assert update.relative_largest * update.norm == pytest.approx(math.sqrt(2) * 2.0**-24)
    assert (parameter.relative_typical, update.held_out) == (0.0, 0.0)


def test_nan_in_the_same_place_is_no_difference_and_in_another_an_infinite_one() -> None:
    tally = Tally()
    for weight in (math.nan, math.nan, 1.0):
        tally.add(values(math.nan, 0), values(weight, 0), held_out=weight == 1.0)
    assert [(one.relative_largest, one.held_out) for one in tally.entries()][1] == (0.0, math.inf)


def test_another_shape_is_no_rounding() -> None:
    tally, recorded, other = Tally(), values(4.0, 1), replace(values(4.0, 1), after={"b": torch.ones(3)})
    for repeated in (recorded, recorded, other):
        tally.add(recorded, repeated)
    assert tally.flipped == [False, False, True] and tally.entries()[1].relative_flipped == math.inf


def test_a_repeat_that_computes_other_things_is_an_error() -> None:
    with pytest.raises(ValueError, match="is not"):
        Tally().add(values(1.0, 0), StepValues([], {}, {}, {}, {}, {}, {"c": torch.ones(2)}, {}, set()))
