"""Each kind of fault, named from findings made by hand; and what no rule has a reason for, which is unknown."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from nest_ssl.compare.born import Born, ModuleJudgement
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Difference, Draw, Fate, Finding, Losses, Stage, Status, Tally
from nest_ssl.compare.kinds import Basis, FaultKind
from nest_ssl.compare.kinds.likely import kinds_of
from nest_ssl.compare.kinds.operators import casts_in, edits_in, purpose_of
from nest_ssl.compare.kinds.roles import role_of
from nest_ssl.compare.metrics import Metrics
from nest_ssl.compare.operators import Change
from nest_ssl.compare.patterns import Pattern, Shape
from nest_ssl.compare.proof import Proof
from nest_ssl.compare.rules.same_function import By, Function
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.clock import Moment, Part, Phase
from nest_ssl.recording.evidence import Operator
from tests.report.builder import comparison, finding, rungs, setting, side

K = FaultKind
CLASSES = {
    "": "their.Net", "front": "their.MelFrontend", "vq": "their.VectorQuantizer", "masker": "their.SpanMasking",
    "body": "their.Body", "body.down": "their.Downsampling", "body.down.0": "torch.nn.modules.conv.Conv2d",
    "body.blocks": "torch.nn.modules.container.ModuleList", "body.blocks.0": "their.Block",
    "body.blocks.0.att": "their.SelfAttention", "body.blocks.0.att.q": "torch.nn.modules.linear.Linear",
    "body.blocks.0.ln": "torch.nn.modules.normalization.LayerNorm", "body.blocks.0.ffn": "their.FFN",
    "body.blocks.0.drop": "torch.nn.modules.dropout.Dropout", "body.mystery": "their.Thing",
    "criterion": "torch.nn.modules.loss.NLLLoss",
}  # fmt: skip


def made(*born: Born, found: tuple[Finding, ...] = (), draws: tuple[Draw, ...] = (), **fields: Any) -> Comparison:
    """A comparison that diverged, with these births and findings."""
    all_rungs = rungs()
    for one in found:
        step = None if one.moment.step < 0 else one.moment.step
        rung = next(rung for rung in all_rungs if rung.name == one.rung)
        tally = next((tally for tally in rung.tallies if tally.step == step), None)
        if tally is None:
            tally = Tally(one.rung, step)
            rung.tallies.append(tally)
        tally.findings.append(one)
    sides = {"reference": side("a", "nemo"), "candidate": side("b", "nest")}
    proof = Proof(born=list(born), **{k: fields.pop(k) for k in ("patterns", "modules") if k in fields})
    first = next(iter(found), None)
    given = {"verdict": Status.DIVERGED, "proof": proof, "rungs": all_rungs, "draws": list(draws), "first": first}
    return comparison(**{**sides, **given, **fields})


def kind_of(case: Comparison) -> FaultKind:
    likely = kinds_of(case, (CLASSES, CLASSES))
    assert len(likely) == 1
    return likely[0].kind


def at(kind: Kind, module: str | None = None, slot: str = "", path: str = "") -> Address:
    return Address(kind, module, None, slot, path)


def field(name: str, path: str = "") -> Finding:
    return finding("batch", 0, Phase.BATCH, 0, kind=Kind.FIELD, module=None, call=None, slot=name, path=path)


def drawn(generator: str, module: str | None = None) -> Draw:
    address = Address(Kind.DRAW, module, None, generator)
    moment = Moment(0, Phase.FORWARD if module else Phase.FETCH, 0, Part.DRAW)
    one = Finding("draws", moment, address, Difference.DRAWS, 5, 7)
    stages = (Stage("forward" if module else "fetch", module),)
    return Draw(moment, 0, generator, stages, stages, (5, 7), Fate.OTHER_COUNT, False, one)


def born(phase: str, module: str | None = None, address: Address | None = None, **fields: Any) -> Born:
    return Born(phase, module, step=fields.pop("step", 0), address=address, **fields)


# --- by what a module is ----------------------------------------------------------------------------------------------

PARTS = {
    "front": K.FEATURES, "vq": K.QUANTIZER, "masker": K.MASKING, "body.down.0": K.SUBSAMPLING,
    "body.blocks.0.att.q": K.ATTENTION, "body.blocks.0.ln": K.CONVOLUTION_AND_NORMS,
    "body.blocks.0.ffn": K.FEED_FORWARD_AND_RESIDUAL, "body.blocks.0.drop": K.DROPOUT_AND_FLAGS,
    "criterion": K.DECODER_AND_LOSS, "body.blocks.0": K.FEED_FORWARD_AND_RESIDUAL, "body.mystery": K.UNKNOWN,
    "": K.UNKNOWN, "body": K.UNKNOWN,
}  # fmt: skip


@pytest.mark.parametrize(("module", "kind"), PARTS.items())
def test_another_function_is_of_the_part_that_it_is_in(module: str, kind: FaultKind) -> None:
    assert kind_of(made(born("forward", module, by=By.FLOAT64), born("backward", module))) is kind


def test_names_count_less_than_classes() -> None:
    basis = {name: role.basis for name in PARTS if (role := role_of(name, CLASSES))}
    assert (basis["body.blocks.0.ln"], basis["front"]) == (Basis.CLASS, Basis.NAMES)


def test_operators_say_what_no_name_does() -> None:
    change = Change("arguments", Operator(name="aten._softmax.default", phase="forward"))
    assert kind_of(made(born("forward", "body.mystery", changes=(change,)))) is K.ATTENTION
    norm = Change("added", None, Operator(name="aten.native_layer_norm.default", phase="forward"))
    assert purpose_of([change, norm]) is None
    assert kind_of(made(born("forward", "body.mystery", changes=(change, norm)))) is K.UNKNOWN


# --- by what was measured ---------------------------------------------------------------------------------------------

GRADIENT = finding("gradients", 0, Phase.GRADIENTS, 0, kind=Kind.GRADIENT, module="vq", call=None, slot="weight")
TYPE = finding(module="body.blocks.0.att", difference=Difference.DTYPE, reference="float32", candidate="bfloat16")
START = finding("start", 1, Phase.STEP_START, 0, kind=Kind.BUFFER, module="body.blocks.0.ln", call=None, slot="mean")
SCALED = Pattern(0, 0, Kind.OUTPUT_GRADIENT, Shape.FACTOR, 40, True, 0.5)
ALONE = [ModuleJudgement("body.blocks.0.att", Function.CAME_IN, 2)]
HELD = finding("gradients", 0, Phase.LOSS, 0, kind=Kind.GRADIENT_BEFORE, module="vq", call=None, slot="w")
HANDED = at(Kind.INPUT, "body.blocks.0.att.q", "x")
LOSS = at(Kind.LOSS, slot="loss")
MEASURED = {
    "float32 alone": (made(born("forward", "front", by=By.FLOAT32)), K.PRECISION_AND_CASTS),
    "another type": (made(born("forward", "body.blocks.0.att", TYPE.address), found=(TYPE,)), K.PRECISION_AND_CASTS),
    "type and shape": (
        made(born("forward", "vq", by=By.SHAPE, why="[2, 3] float32 against [2, 4] float64")), K.QUANTIZER,
    ),
    "another type in a replay": (
        made(born("forward", "vq", by=By.SHAPE, why="[2, 3] float32 against [2, 3] float64")), K.PRECISION_AND_CASTS,
    ),
    "frozen": (made(born("structure", "vq", at(Kind.PARAMETER, "vq", "w", "requires_grad"))), K.DROPOUT_AND_FLAGS),
    "mode": (made(born("between steps", "vq", at(Kind.MODULE, "vq", "training"))), K.DROPOUT_AND_FLAGS),
    "shared memory": (
        made(born("batch", None, field("audio").address), found=(field("audio", "memory"), field("audio"))),
        K.ALIASING_AND_IN_PLACE,
    ),
    "edited between": (
        made(born("forward", "body.blocks.0.att", HANDED), modules=ALONE),
        K.ALIASING_AND_IN_PLACE,
    ),
    "another function, replayed": (
        made(born("forward", "body.blocks.0.att", HANDED, by=By.FLOAT64), modules=ALONE),
        K.ATTENTION,
    ),
    "a module's draws": (made(born("draws", "masker", at(Kind.DRAW, "masker", "torch.cpu"))), K.MASKING),
    "draws of another type": (
        made(born("draws", "masker", by=By.SHAPE, why="[2, 3] float32 against [2, 3] float64")), K.MASKING,
    ),
    "a dropout's draws": (made(born("draws", "body.blocks.0.drop")), K.DROPOUT_AND_FLAGS),
    "other draws": (made(born("draws", None, at(Kind.DRAW, slot="torch.cpu"), step=None)), K.SEED_AND_DRAWS),
    "what is read": (made(born("batch", None), found=(field("audio"), field("noisy_audio"))), K.MANIFEST_AND_AUDIO),
    "the order": (
        made(born("batch", None), found=(field("audio"), field("noisy_audio")), draws=(drawn("torch.cpu"),)),
        K.SEED_AND_DRAWS,
    ),
    "what is added": (made(born("batch", None), found=(field("noise"), field("noisy_audio"))), K.AUGMENTATION),
    "what is added, drawn": (
        made(born("batch", None), found=(field("noisy_audio"),), draws=(drawn("torch.cpu"),)), K.AUGMENTATION,
    ),
    "filled otherwise": (
        made(born("initial weights", "vq", at(Kind.PARAMETER, "vq", "w"), step=None)), K.SEED_AND_DRAWS,
    ),
    "computed": (made(born("initial weights", "front", at(Kind.BUFFER, "front", "w"), step=None)), K.FEATURES),
    "the loss": (made(born("loss", None, LOSS)), K.DECODER_AND_LOSS),
    "backward": (made(born("backward", "body.blocks.0.att")), K.BACKWARD_ONLY),
    "scaled": (made(born("backward", None), patterns=[SCALED]), K.CLIPPING_AND_ACCUMULATION),
    "not cleared": (made(born("backward", "vq"), found=(HELD,)), K.CLIPPING_AND_ACCUMULATION),
    "clipping": (made(born("clipping", None)), K.CLIPPING_AND_ACCUMULATION),
    "one side steps": (made(born("optimizer", None, at(Kind.UPDATE))), K.CLIPPING_AND_ACCUMULATION),
    "eps": (made(born("optimizer", None, at(Kind.OPTIMIZER_SETTING, slot="0", path="eps"))), K.OPTIMIZER),
    "the rate": (made(born("optimizer", None, at(Kind.OPTIMIZER_SETTING, slot="0", path="lr"))), K.SCHEDULE),
    "the update": (made(born("optimizer", None, at(Kind.UPDATE, "vq", "w"))), K.OPTIMIZER),
    "rates": (made(born("schedule", None, by=By.RATES)), K.SCHEDULE),
    "nudged": (made(born("between steps", "vq", at(Kind.PARAMETER, "vq", "w"))), K.OPTIMIZER),
    "one process": (made(born("backward", "vq", GRADIENT.address), found=(GRADIENT,)), K.BACKWARD_ONLY),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_a_kind_by_what_was_measured(name: str) -> None:
    case, kind = MEASURED[name]
    assert kind_of(case) is kind


def test_several_processes() -> None:
    one_rank = finding(rank=1)
    case = made(born("forward", "body.blocks.0.att", rank=1), found=(one_rank,))
    for each in (case.reference, case.candidate):
        each.index = each.index.model_copy(update={"world_size": 2})
    assert kind_of(case) is K.RANKS
    case.rung("forward").tallies[0].findings.append(finding())
    assert kind_of(case) is K.ATTENTION
    reduced = made(born("backward", "vq", GRADIENT.address), found=(GRADIENT, finding(
        "gradients", 0, Phase.GRADIENTS, 0, kind=Kind.GRADIENT, module="vq", call=None, slot="weight", rank=1,
    )))  # fmt: skip
    for each in (reduced.reference, reduced.candidate):
        each.index = each.index.model_copy(update={"world_size": 2})
    assert kind_of(reduced) is K.RANKS


def test_what_a_checkpoint_brings_back() -> None:
    state = at(Kind.OPTIMIZER_STATE, "vq", "w", "exp_avg")
    case = made(born("optimizer", None, state, step=1), found=(START,))
    assert kind_of(case) is K.OPTIMIZER
    case.candidate = side("b", "nest", resumed_from={"checkpoint": "x.ckpt", "batches": 1, "steps": 1})
    assert kind_of(case) is K.CHECKPOINT_AND_RESUME
    later = made(born("optimizer", None, state, step=2), candidate=case.candidate)
    assert kind_of(later) is K.OPTIMIZER


def test_a_validation_that_changes_the_model() -> None:
    place = born("between steps", "body.blocks.0.ln", START.address, step=1)
    case = made(place, found=(START,))
    assert kind_of(case) is K.OPTIMIZER
    case.rungs.append(rungs()[0].__class__("validation", [Tally("validation", 1, 0, Counter({"calls": 3}))]))
    assert kind_of(case) is K.DROPOUT_AND_FLAGS


@pytest.mark.parametrize(
    ("unused", "relative", "elements", "kind"),
    [
        ((0, 13), 3e-4, 1000, K.PRECISION_AND_CASTS),  # float16
        ((17, 1), 2e-3, 1000, K.PRECISION_AND_CASTS),  # bfloat16, the reference
        ((0, 13), 0.1, 1000, K.FEATURES),  # too far for rounding
        ((13, 13), 3e-4, 1000, K.FEATURES),  # both of one format
        ((0, 13), 3e-4, 9, K.FEATURES),  # few values may be round by chance
        ((0, 4), 3e-7, 1000, K.FEATURES),  # of no format
    ],
)
def test_values_of_a_narrower_format(unused: tuple[int, int], relative: float, elements: int, kind: FaultKind) -> None:
    place = at(Kind.BUFFER, "front", "window")
    values = Metrics(elements, elements, relative=relative, eps=2.0**-23, unused=unused)
    one = finding("initial_weights", -1, Phase.INITIAL_WEIGHTS, 0, kind=Kind.BUFFER, module="front", call=None,
                  slot="window", metrics=values)  # fmt: skip
    assert kind_of(made(born("initial weights", "front", place, step=None), found=(one,))) is kind
    update = at(Kind.UPDATE, "vq", "w")
    none = finding(
        "weights", 0, Phase.AFTER_STEP, 0, kind=Kind.UPDATE, module="vq", call=None, slot="w", metrics=values
    )
    assert kind_of(made(born("optimizer", None, update), found=(none,))) is K.OPTIMIZER


@pytest.mark.parametrize(
    ("module", "name", "factor", "rate", "kind"),
    [
        ("body.blocks.0", "mul", 0.9, 0.1, K.DROPOUT_AND_FLAGS),
        ("body.blocks.0", "div", 0.9, 0.1, K.DROPOUT_AND_FLAGS),
        ("body.blocks.0", "mul_", 1 / 0.9, 0.1, K.DROPOUT_AND_FLAGS),
        ("body.blocks.0", "mul", 0.5, 0.1, K.FEED_FORWARD_AND_RESIDUAL),  # another number
        ("body.blocks.0", "add", 0.9, 0.1, K.FEED_FORWARD_AND_RESIDUAL),  # no product
        ("body.blocks.0", "mul", 1.0, 0.0, K.FEED_FORWARD_AND_RESIDUAL),  # a dropout that is off
        ("body.blocks.0.att", "mul", 0.9, 0.1, K.ATTENTION),  # no dropout in it
    ],
)
def test_what_a_dropout_keeps_scaled_once_more(
    module: str, name: str, factor: float, rate: float, kind: FaultKind
) -> None:
    product = Operator(name=f"aten.{name}.Tensor", phase="forward", arguments={"other": factor})
    case = made(born("forward", module, at(Kind.OUTPUT, module), changes=(Change("added", candidate=product),)))
    case.reference.config = {"model": {"encoder": {"dropout": rate}}}
    assert kind_of(case) is kind


@pytest.mark.parametrize(
    ("module", "moved", "kind"),
    [
        ("body.blocks.0", "body.blocks.0.drop", K.DROPOUT_AND_FLAGS),
        ("body.blocks.0", "body.blocks.0.ln", K.FEED_FORWARD_AND_RESIDUAL),  # no dropout
        ("body.blocks.0.att", "body.blocks.0.drop", K.ATTENTION),  # which stands in another module
    ],
)
def test_a_dropout_at_another_place_among_the_same_operators(module: str, moved: str, kind: FaultKind) -> None:
    assert kind_of(made(born("forward", module, at(Kind.OUTPUT, module), moved=(moved,)))) is kind


@pytest.mark.parametrize(
    ("module", "candidate", "kind"),
    [
        ("body.blocks.0.att", "ba", K.ATTENTION),
        ("body.blocks.0.att", "ab", K.BACKWARD_ONLY),  # the same
        ("body.blocks.0.att", "bb", K.BACKWARD_ONLY),  # one has the other's, and that has its own
        ("body.mystery", "ba", K.BACKWARD_ONLY),  # whatever that is
    ],
)
def test_two_parameters_that_are_used_in_each_others_place(module: str, candidate: str, kind: FaultKind) -> None:
    """As long as both are zero the backward alone shows it: each has the gradient of the other."""

    def sided(label: str, digests: str) -> Any:
        entries = {f"{module}.{name}": {"shape": [2], "dtype": "float32", "digest": digest * 64}
                   for name, digest in zip("uv", digests, strict=True)}  # fmt: skip
        return side(label, "nest", tensors={"step_0/parameter_gradients.pt": entries})

    case = made(born("backward", module, at(Kind.GRADIENT, module, "u")))
    case.reference, case.candidate = sided("a", "ab"), sided("b", candidate)
    assert kind_of(case) is kind


SETTINGS = {
    "seed": K.SEED_AND_DRAWS, "config.seed": K.SEED_AND_DRAWS, "data.train.content": K.MANIFEST_AND_AUDIO,
    "config.model.train_ds.manifest_filepath": K.MANIFEST_AND_AUDIO, "resumed_from": K.CHECKPOINT_AND_RESUME,
    "init_from.nemo_model": K.CHECKPOINT_AND_RESUME, "world_size": K.RANKS, "flags.allow_tf32": K.PRECISION_AND_CASTS,
    "config.model.encoder.dropout": K.CONFIGURATION, "versions.torch": K.CONFIGURATION,
}  # fmt: skip


@pytest.mark.parametrize(("path", "kind"), SETTINGS.items())
def test_a_setting_hides_what_else_differs(path: str, kind: FaultKind) -> None:
    case = made(born("forward", "front"), found=(setting(path, 1, 2),))
    assert kind_of(case) is kind


def test_each_place_has_its_own_kind() -> None:
    case = made(born("forward", "front"), born("forward", "vq"), born("backward", "front"), born("schedule", None))
    assert [one.kind for one in kinds_of(case, (CLASSES, CLASSES))] == [K.FEATURES, K.QUANTIZER, K.SCHEDULE]


def test_a_layer_draws_only_to_drop_out() -> None:
    layer, dropout = "body.blocks.0", drawn("torch.cpu", "body.blocks.0.drop")
    assert kind_of(made(born("forward", layer), draws=(dropout,))) is K.DROPOUT_AND_FLAGS
    handed = at(Kind.INPUT, "body.blocks.0.drop", "input")  # whatever a branch is made of ends in one
    assert kind_of(made(born("forward", layer, handed, by=By.FLOAT64))) is K.FEED_FORWARD_AND_RESIDUAL
    att = "body.blocks.0.att"
    assert kind_of(made(born("forward", att), draws=(drawn("torch.cpu", att),))) is K.DROPOUT_AND_FLAGS
    assert kind_of(made(born("forward", att), draws=(dropout,))) is K.ATTENTION
    assert kind_of(made(born("forward", "masker"), draws=(drawn("torch.cpu", "masker"),))) is K.MASKING


def test_what_a_module_does_for_its_parts_is_its_own() -> None:
    case = made(born("forward", "body.blocks.0.att"), born("backward", "body.blocks.0.att.q"))
    assert kind_of(case) is K.ATTENTION
    assert kind_of(made(born("backward", "body.blocks.0.att.q"))) is K.BACKWARD_ONLY


def test_a_loss_that_is_not_divided() -> None:
    case = made(born("loss", None, LOSS), losses=[Losses(0, 2.5, 5.0)])
    assert kind_of(case) is K.DECODER_AND_LOSS
    case.reference.config["trainer"] = {"accumulate_grad_batches": 2}
    assert kind_of(case) is K.CLIPPING_AND_ACCUMULATION
    case.losses = [Losses(0, 2.5, 5.001)]
    assert kind_of(case) is K.DECODER_AND_LOSS


def test_padding_masks_are_their_readers_matter() -> None:
    for slot, kind in {"att_mask": K.ATTENTION, "pad_mask": K.UNKNOWN, "mask": K.MASKING}.items():
        case = made(born("forward", "body", at(Kind.INPUT, "body.blocks.0", slot), by=By.FLOAT64))
        assert kind_of(case) is kind


def test_draws_that_came_in_are_no_fault() -> None:
    cleared = [ModuleJudgement("masker", Function.CAME_IN, 3)]
    case = made(born("forward", "front"), born("draws", "masker"), modules=cleared)
    assert kind_of(case) is K.FEATURES
    assert kind_of(made(born("draws", "masker"), modules=cleared)) is K.MASKING


def test_nothing_is_named_where_nothing_is_wrong() -> None:
    assert kinds_of(made(born("forward", "front"), verdict=Status.EQUIVALENT), (CLASSES, CLASSES)) == []


# --- operators --------------------------------------------------------------------------------------------------------


def ran(name: str, given: str = "float32", result: str = "float32") -> Operator:
    return Operator(name=f"aten.{name}", phase="forward", tensors=[f"[2] {given}"], outputs=[f"[2] {result}"])


def test_casts() -> None:
    cast = Change("added", None, ran("_to_copy.default", "float32", "bfloat16"))
    assert casts_in([cast]) is not None
    assert casts_in([Change("added", None, ran("_to_copy.default", "bool", "float32"))]) is None
    other_type = Change("tensors", ran("mm.default"), ran("mm.default", "bfloat16", "bfloat16"))
    assert casts_in([other_type]) is not None
    assert casts_in([Change("arguments", ran("mm.default"), ran("mm.default"))]) is None


def test_edits() -> None:
    out_of_place, in_place = Change("missing", ran("add.Tensor")), Change("added", None, ran("add_.Tensor"))
    assert edits_in([out_of_place, in_place]) is not None
    assert edits_in([in_place]) is None
    copy = Change("missing", ran("clone.default"))
    assert edits_in([copy]) is not None and edits_in([copy, Change("missing", ran("mul.Tensor"))]) is None
