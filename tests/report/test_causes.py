"""One sentence for every way in which a difference came about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nest_ssl.compare.findings import Birth, Cause, Consequence, Draw, Fate, Finding, Remainder, Stage, Unexplained
from nest_ssl.recording.address import Kind
from nest_ssl.recording.clock import BEFORE_STEPS, Phase
from nest_ssl.report.document import plain
from nest_ssl.report.sections.causes import cause_text, consequence_texts, draw_sentence, remainder_text
from tests.report.builder import comparison, diverged, draw, finding

STATE = finding("draws", 0, Phase.FORWARD_DONE, 0, kind=Kind.GENERATOR_STATE, module=None, call=None, slot="torch_cpu")
DRAWN = finding("draws", kind=Kind.DRAW, module="masking", slot="torch_cpu")


def drew(*counts: int | None, fate: Fate = Fate.OTHER_COUNT, **fields: Any) -> Draw:
    reference, candidate = counts
    return draw(module="masking", step=0, counts=(reference, candidate), fate=fate, found=DRAWN, **fields)


@pytest.mark.parametrize(
    ("cause", "first", "text"),
    [
        (Cause(Birth.BUILT_OTHERWISE), finding(), "The two models are not built alike."),
        (
            Cause(Birth.FILLED_OTHERWISE, draw=draw(counts=(605, 661), fate=Fate.OTHER_COUNT)),
            finding(),
            "The models are built alike, but not filled alike: it differs before the first step. Building the model "
            "drew 605 numbers from torch_cpu, the candidate 661.",
        ),
        (Cause(Birth.BATCH), finding(), "The batch differs before the model has seen it."),
        (
            Cause(Birth.DRAW, draw=drew(8, 11), batch_differs=True),
            DRAWN,
            "Every value up to there has the same bits. masking drew 8 numbers from torch_cpu, the candidate 11. The "
            "batch differs, too: other draws make another batch, but another clip also draws otherwise.",
        ),
        (
            Cause(Birth.STATE),
            STATE,
            "Every value up to there has the same bits. torch_cpu is in another state after the forward: one side drew "
            "other random numbers, or another count of them.",
        ),
        (
            Cause(Birth.NEVER_CALLED, order=3, calls=22),
            finding(),
            "The candidate never makes this call; everything compared before it has the same bits.",
        ),
        *(
            (
                Cause(Birth.BEFORE_CALL, module, order=3, calls=22),
                finding(kind=Kind.INPUT),
                f"Everything compared before this call has the same bits, its inputs do not: born in {code}, between "
                "the last call before it and this one.",
            )
            for module, code in (
                (None, "the training step's own code"),
                ("", "the model's own forward"),
                ("encoder", "the own code of encoder"),
            )
        ),
        (
            Cause(Birth.OWN_CODE, "encoder", order=10, calls=1004),
            finding(),
            "Its inputs and all calls inside it have the same bits, its output does not: born in its own code. It is "
            "the first such call in execution order (11 of 1,004).",
        ),
        (
            Cause(Birth.OUTPUT, "encoder", order=0, calls=22, unrecorded=(1, 8)),
            finding(),
            "Its inputs have the same bits, its output does not. It is the first such call in execution order (1 of "
            "22). "
            "Steps 1 to 8 were not compared: it may have been born there.",
        ),
        (
            Cause(Birth.OUTPUT, "encoder", order=0, calls=22, draw=drew(8, 10), unrecorded=(0, 0)),
            finding(),
            "Its inputs have the same bits, its output does not. It is the first such call in execution order (1 of "
            "22). "
            "Random draws differ after it: masking drew 8 numbers from torch_cpu, the candidate 10. Step 0 was not "
            "compared: it may have been born there.",
        ),
        (
            Cause(Birth.MODEL_OUTPUT, states=("torch_cpu", "numpy")),
            finding(),
            "No call that was compared differs before it. This forward also left other random states (torch_cpu, numpy)"
            ".",
        ),
        (
            Cause(Birth.LOSS),
            finding(),
            "Every call and every output of the forward has the same bits; the loss made from them does not.",
        ),
        (
            Cause(Birth.OWN_BACKWARD),
            finding(),
            "The gradient that arrives at this module's output has the same bits: born in its own backward.",
        ),
        (Cause(Birth.FIRST_GRADIENT), finding(), "It is the first gradient of all: born in the backward of the loss."),
        (
            Cause(Birth.BETWEEN_BACKWARDS, after="encoder.norm"),
            finding(),
            "Gradients that backward reached before it have the same bits, the last of them at the output of "
            "encoder.norm: born between the two, in the backward of what used this output.",
        ),
        (Cause(Birth.GRADIENT), finding(), "No gradient that backward reached before it differs."),
        (
            Cause(Birth.OPTIMIZER_SETTING),
            finding(),
            "Loss and gradients have the same bits; the optimizer is set otherwise.",
        ),
        (Cause(Birth.UPDATE), finding(), "Loss and gradients have the same bits; what the step left behind does not."),
        (
            Cause(Birth.GROWN),
            finding(),
            "Bits part before it, within the tolerance, but this cannot have grown from that.",
        ),
        (None, finding(), ""),
    ],
)
def test_how_it_was_born(cause: Cause | None, first: Finding, text: str) -> None:
    assert plain(cause_text(comparison(first=first, cause=cause))) == text


OTHER = draw(module="masking", step=0, counts=(0, 16), fate=Fate.OTHER_COUNT, found=DRAWN, generator="numpy")
EXTRA = replace(drew(0, 1, fate=Fate.ONE_SIDED), reference=())


@pytest.mark.parametrize(
    ("drawn", "draws", "text"),
    [
        (drew(912, 913), [], "masking drew 912 numbers from torch_cpu, the candidate 913."),
        (
            drew(912, 912, fate=Fate.CAME_IN, call=2),
            [],
            "masking, call 2, drew as many numbers from torch_cpu (912), but started from another state: came in.",
        ),
        (
            drew(912, 912, fate=Fate.LEFT_OTHERWISE),
            [],
            "masking drew as many numbers from torch_cpu (912), but left it in another state.",
        ),
        (EXTRA, [], "An extra draw in masking: 1 number from torch_cpu, in the candidate only."),
        (
            replace(EXTRA, candidate=(Stage("loss"),)),
            [],
            "An extra draw in the training step, after the forward: 1 number from torch_cpu, in the candidate only.",
        ),
        (
            replace(drew(1, 0, fate=Fate.ONE_SIDED), reference=(Stage("loss"),)),
            [],
            "The training step, after the forward, drew 1 number from torch_cpu, the candidate none.",
        ),
        (drew(8, 0, fate=Fate.ONE_SIDED), [OTHER], "masking drew 8 numbers from torch_cpu, the candidate none; from "
                                                   "numpy 0 against 16."),
        (
            drew(None, 3),
            [replace(OTHER, came_in=True), replace(OTHER, finding=None)],
            "masking drew more numbers than could be counted from torch_cpu, the candidate 3.",
        ),
        (
            replace(drew(5, 6), candidate=(Stage("forward", "a"), Stage("forward", "b")), came_in=True),
            [],
            "masking drew 5 numbers from torch_cpu, the candidate 6, in a to b from another state: came in.",
        ),
    ],
)  # fmt: skip
def test_one_draw(drawn: Draw, draws: list[Draw], text: str) -> None:
    assert plain(draw_sentence(drawn, [drawn, *draws])) == text


# --- what follows, and what does not ----------------------------------------------------------------------------------


def follows(first_step: int, *consequences: Consequence) -> list[str]:
    made = comparison(first=finding(step=first_step), follows=list(consequences))
    return [plain(text) for text in consequence_texts(made)]


def test_the_headlines_own_step_in_full_and_later_ones_by_number() -> None:
    found = [Consequence("forward", 0, 54), Consequence("loss", 0, 1, 1.1e-2), Consequence("forward", 1, 9)]
    text = "at step 0: 54 calls and outputs of the forward, the loss by 1.1e-02"
    assert follows(0, *found) == [text, "differences at step 1"]
    assert follows(0, *found, Consequence("loss", 4, 1)) == [text, "differences at steps 1, 4"]
    assert follows(2, Consequence("loss", 2, 1)) == ["at step 2: the loss"]


def test_a_validation_behind_the_steps_is_no_step() -> None:
    found = [Consequence("forward", 0, 2), Consequence("validation", 2, 3), Consequence("loss", 1, 1)]
    behind = ["differences at step 1", "and in the validation after 2 steps"]
    assert follows(0, *found)[1:] == behind
    assert follows(0, *found, Consequence("validation", 4, 3))[-1] == "and in 2 validations"
    assert follows(2, Consequence("validation", 2, 3)) == ["at step 2: 3 values of a validation"]


def test_before_the_steps() -> None:
    found = [Consequence("structure", None, 1), Consequence("draws", None, 2), Consequence("weights", 3, 1)]
    text = "1 entry of the structure, 2 stages of random draws or random states"
    assert follows(BEFORE_STEPS, *found) == [text, "at step 3: 1 value after the step"]


def test_nothing_follows() -> None:
    assert follows(0) == []


NAMED = [finding(module=f"a.{i}", call=0) for i in range(5)]


@pytest.mark.parametrize(
    ("why", "found", "text"),
    [
        (Unexplained.CALLS, NAMED[:1], "calls in other modules differ though their inputs have the same bits: a.0"),
        (Unexplained.CALLS, [finding(call=2), *NAMED], "calls in other modules differ though their inputs have the same"
                            " bits: encoder.layers.1 (call 2), a.0, a.1 and 3 more"),
        (Unexplained.CLASSES, [finding("structure", -1, kind=Kind.MODULE, call=None, slot="class")] * 2,
         "modules are of another class: encoder.layers.1.class"),
        (Unexplained.DRAWS, [DRAWN], "random draws differ on their own at step 0, in: masking"),
        (Unexplained.LOSS, [finding("loss", kind=Kind.LOSS, module=None, call=None, slot="loss")],
         "the loss differs though the model's outputs do not: loss"),
        (Unexplained.OPTIMIZER, [finding("weights", kind=Kind.OPTIMIZER_SETTING, module=None, call=None, slot="0",
                                         path="params.spare.weight")],
         "the optimizer is set otherwise: param_groups.0.params.spare.weight"),
    ],
)  # fmt: skip
def test_what_is_not_explained(why: Unexplained, found: list[Finding], text: str) -> None:
    assert plain(remainder_text(Remainder(why, tuple(found)))) == text


def test_a_divergence_says_both() -> None:
    text = [plain(text) for text in consequence_texts(diverged())]
    assert text == [
        "at step 0: 7 calls and outputs of the forward, the loss by 3.1e-04, 1 gradient, 40 values after the step",
        "differences at step 1",
    ]
