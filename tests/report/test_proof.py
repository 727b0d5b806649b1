"""The first screen where there is evidence: every place where a difference was born, and why the rest is rounding."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from nest_ssl.compare.born import Born, ModuleJudgement
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.evidence import Had
from nest_ssl.compare.findings import Judgement, Note, Status
from nest_ssl.compare.gaps import Gap
from nest_ssl.compare.patterns import Pattern, Shape
from nest_ssl.compare.proof import Agreement, Float64, Proof
from nest_ssl.compare.rules.known import Known, Used
from nest_ssl.compare.rules.noise_floor import Band
from nest_ssl.compare.rules.same_function import By, Function
from nest_ssl.data.fingerprint import HASHED_IN_FULL, LOOKED_AT
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.evidence import Check
from nest_ssl.report.document import Bullets, plain
from nest_ssl.report.render.json import render_json
from nest_ssl.report.sections import details, summary
from nest_ssl.report.sections.proof import born_sentence
from nest_ssl.report.write import report_text
from tests.report.builder import comparison, diverged, finding, measured, other_experiment, setting, side
from tests.report.test_headline import lines

NORM = Born(
    "forward", "encoder.layers.3.norm_out", 1, 0, times=12, size=3.14e-5, floors=412.3, by=By.FLOAT64,
    address=Address(Kind.OUTPUT, "encoder.layers.3.norm_out", 1),
    operators=("layer_norm: eps 1e-06, not 1e-05",), source=("nemo/conformer.py:88", "nest_ssl/layer.py:41"),
)  # fmt: skip
EPS = Born("optimizer", None, None, 0, size=0.5)
HAD = [Had("replay", True, 6.9), Had("float64", False, 0.0, "NeMo 2.7 cannot", "a small bug may pass for rounding")]


def proven(*born: Born, **fields: Any) -> Comparison:
    return diverged(proof=Proof(HAD, born=list(born), **fields))


def bullets(made: Comparison) -> list[str]:
    return [plain(item) for block in summary(made) if isinstance(block, Bullets) for item in block.items]


def test_the_title_and_the_list_name_every_place() -> None:
    made = proven(NORM, EPS)
    assert lines(made)[:2] == [
        "nest-ssl 0.1.0 parts from NeMo 3.0.0 in encoder.layers.3.norm_out and 1 more",
        "diverged: born in 2 places; all else comes in or follows, or is named below. (146 of 425 tensors have the same"
        " bits, over steps 0 to 1.)",
    ]
    assert bullets(made) == [
        "encoder.layers.3.norm_out, forward (step 0, call 1, 12 times): another function. On the reference's own inputs"
        " output differs by 3.1e-05 of its size, 412 noise floors. Operators: layer_norm: eps 1e-06, not 1e-05. "
        "Reference nemo/conformer.py:88, candidate nest_ssl/layer.py:41.",
        "the optimizer, optimizer (step 0): its result differs by 5.0e-01 of its size, though everything recorded that "
        "it depends on has the same bits.",
    ]
    assert not any("make explain" in line for line in lines(made))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"by": By.ERROR, "why": "KeyError: x", "size": None}, "it ends in an error: KeyError: x."),
        ({"by": By.FLOAT32}, "the same function in float64, another one in this precision"),
        ({"by": None, "decided": False}, "float64 or the noise floor would say whether that is rounding."),
        ({"by": By.FLOOR, "floors": 4.25}, ", 4.2 noise floors."),
        ({"in_float64": 2e-9}, "; in float64 by 2.0e-09, where a correct rewrite agrees to 1e-13."),
    ],
)
def test_what_decided_is_said(fields: dict[str, Any], says: str) -> None:
    assert says in plain(born_sentence(replace(NORM, operators=(), source=("", ""), **fields)))


def test_no_function_differs_and_yet_it_is_no_rounding() -> None:
    made = proven(lacking=[Note("beyond_floor", {"count": 3, "at": finding()})])
    assert lines(made)[0] == "nest-ssl 0.1.0 differs from NeMo 3.0.0, and not as rounding does"
    assert (
        "Why it is not shown to be rounding: 3 differences are not rounding (more than 3 noise floors, or none that is "
        "known), first step 0, forward, encoder.layers.1, output."
    ) in lines(made)


def test_own_code_is_named_by_what_it_hands_on() -> None:
    handed = replace(NORM, address=Address(Kind.INPUT, "dropout", 0, "input"), operators=(), source=("", ""))
    assert "what it hands to dropout (inputs.input) differs" in plain(born_sentence(handed))
    brought = replace(handed, address=Address(Kind.OUTPUT_GRADIENT, "dropout", 0))
    assert "the gradient that it brings to dropout (output_grad) differs" in plain(born_sentence(brought))


def test_a_module_counts_once() -> None:
    made = proven(NORM, replace(NORM, phase="backward"), EPS)
    assert "born in 2 places" in lines(made)[1] and len(bullets(made)) == 3


def test_without_a_replay_the_list_may_lack_modules() -> None:
    made = proven(NORM)
    made.proof.evidence = [Had("floor", True, 6.9)]
    assert lines(made)[1].startswith(
        "diverged: born in 1 place, as far as both runs show; without a replay, other modules may differ as well."
    )


def test_what_is_lacking_is_said() -> None:
    made = proven(lacking=[Note("lacks_function"), Note("lacks_floor")])
    assert lines(made)[0] == "nest-ssl 0.1.0 differs from NeMo 3.0.0, and nothing shows yet that it is rounding"
    assert "neither the replay nor float64 was had" in lines(made)[2]
    left = Gap("backward", "decoder", 0, 1, 0, "the candidate has no such module")
    replay = Note("lacks_replay", {"count": 2, "at": left})
    says = "first decoder, backward at step 1 (the candidate has no such module)"
    assert says in lines(proven(lacking=[replay]))[2]
    assert (
        "born in 1 place; 2 more functions that a difference goes through were not replayed"
        in lines(proven(NORM, lacking=[replay]))[1]
    )
    flip = Note("lacks_flip", {"count": 3, "at": finding()})
    assert lines(proven(lacking=[flip]))[0].endswith("nothing shows yet that it is rounding")
    at = finding("loss", kind=Kind.LOSS, module=None, call=None, slot="loss")
    said = lines(proven(lacking=[Note("lacks_float64", {"at": at})]))
    assert "in float64 the two part at step 0, loss" in said[2]


def test_rounding_is_shown() -> None:
    largest = measured(1e-6, 0.9)
    largest = replace(largest, judgement=Judgement(True, "noise floor", {}, 2.25))
    units = Counter({(Function.SAME, By.BITS): 1004, (Function.SAME, By.FLOAT64): 3, (Function.SAME, By.FLOOR): 1})
    proof = Proof(
        HAD, units, float64=Float64(Agreement.AGREES, 1.4e-13), bands=Counter({Band.LOOK: 2}), largest=largest
    )
    made = comparison(verdict=Status.EQUIVALENT, first=largest, rule={"kind": "noise floor", "repeats": 8}, proof=proof)
    assert lines(made)[:2] == [
        "NeMo 3.0.0 and nest-ssl 0.1.0 train equivalently",
        "equivalent: 425 of 425 tensors have the same bits, over steps 0 to 1; the others are rounding. Every function "
        "is the same (1,004 calls and backwards with the same bits, 3 agree in float64 to 1e-10, 1 within their noise "
        "floor, both trainers in float64 agree to 1.4e-13). The largest difference is 2.2 noise floors, at step 0, "
        "forward, encoder.layers.1, output. Look at 2 tensors: between 1.2 and 3 floors. Nothing missing on either "
        "side.",
    ]


def test_the_details_have_the_modules_and_the_evidence() -> None:
    modules = [
        ModuleJudgement("a", Function.SAME, 2),
        ModuleJudgement("b", Function.ANOTHER, 2),
        ModuleJudgement("c", Function.NOT_REPLAYED, 1, "the candidate has no such module"),
    ]
    text = report_text(proven(NORM, modules=modules))
    assert "| replay | yes | 7 s | - |" in text
    assert "| float64 | no | - | NeMo 2.7 cannot: a small bug may pass for rounding |" in text
    assert "1 module with the same function, 1 module with another function, 1 module not replayed." in text
    assert "| `b` | another function | - |" in text
    assert "| `c` | not replayed | the candidate has no such module |" in text
    assert "| `a` |" not in text
    assert not any("Evidence" in plain(getattr(block, "text", ())) for block in details(diverged()))


def test_programs_read_the_same() -> None:
    tree = json.loads(render_json(proven(NORM, units=Counter({(Function.SAME, By.BITS): 7}))))
    assert tree["evidence"] == [
        {"kind": "replay", "had": True, "seconds": 6.9, "why": "", "costs": ""},
        {"kind": "float64", "had": False, "seconds": 0.0, "why": HAD[1].why, "costs": HAD[1].costs},
    ]
    (born,) = tree["born"]
    assert {key: born[key] for key in ("module", "call", "phase", "size", "floors", "tensor", "by")} == {
        "module": "encoder.layers.3.norm_out", "call": 1, "phase": "forward", "size": 3.14e-5, "floors": 412.3,
        "tensor": "output", "by": "float64",
    }  # fmt: skip
    assert born["source"] == {"reference": "nemo/conformer.py:88", "candidate": "nest_ssl/layer.py:41"}
    assert born["operators"] == ["layer_norm: eps 1e-06, not 1e-05"]
    assert tree["proof"]["units"] == [{"function": "same function", "by": "bits", "units": 7}]
    assert json.loads(render_json(comparison()))["born"] == []


def test_of_many_places_the_first_are_listed() -> None:
    assert bullets(proven(*[NORM] * 20))[-1] == "16 more, listed below."


def test_another_experiment_has_no_births() -> None:
    made = other_experiment(setting("seed", 1, 2))
    made.proof = Proof(HAD, born=[NORM])
    assert bullets(made) == []


def test_one_cause_over_all_tensors_is_said() -> None:
    def said(**fields: Any) -> str:
        whole = {"step": 0, "rank": 0, "kind": Kind.UPDATE, "shape": Shape.SIGN, "count": 643, "whole": True}
        pattern = Pattern(**{**whole, "factor": -1.0, **fields})  # type: ignore[arg-type]
        return lines(diverged(proof=Proof(patterns=[pattern])))[1]

    assert "All 643 updates have the opposite sign: no module's own (look at the learning rate" in said()
    factor = {"kind": Kind.APPLIED_GRADIENT, "shape": Shape.FACTOR, "factor": 0.25000001}
    assert "All 643 gradients that the optimizer used are the reference's times 0.25: one factor" in said(**factor)
    part = {"shape": Shape.ZERO, "count": 12, "whole": False, "below": "encoder.layers", "own": "bias", "factor": 0.0}
    assert "12 updates in encoder.layers, each called bias are zero, the reference's are not" in said(**part)


def test_what_a_run_could_not_see_stands_below_a_pass_alone() -> None:
    unseen = [Note("unseen_padding"), Note("unseen_warmup", {"steps": 2, "warmup": 25_000})]
    made = comparison(unseen=unseen)
    assert lines(made)[2] == (
        "What this run could not see: padding (in each batch all lengths are the same), the schedule beyond 2 of 25,000"
        " warm-up steps."
    )
    assert not any("could not see" in line for line in lines(diverged(unseen=unseen)))


def test_a_large_corpus_is_not_hashed_whole_and_that_is_said() -> None:
    data = {"train": {"noise": {"audio_hash": "sampled"}}}
    said = lines(comparison(candidate=side("nest-ssl 0.1.0", "nest", data=data)))[2]
    assert said.startswith("What this run could not see: audio of which neither side took a hash (of more than")
    assert f"than {HASHED_IN_FULL:,} files" in said and f"than {LOOKED_AT:,} lines" in said
    assert not any("took a hash" in line for line in lines(comparison()))


def test_known_differences_are_named() -> None:
    entry = Known("decoder.output", 1e-5, "in float64", "issue 12", datetime.date(2999, 12, 31))
    found = measured(1e-6, 0.1)
    made = comparison(verdict=Status.EQUIVALENT, first=found, ledger=[Used(entry, 3, 4), Used(entry, fault="expired")])
    assert lines(made)[0] == "NeMo 3.0.0 and nest-ssl 0.1.0 agree but for 1 known difference"
    assert "the others are 1 known difference that you named, or what rounding does." in lines(made)[1]
    text = report_text(made)
    assert "| `decoder.output` | 1.0e-05 | in float64 | issue 12 | 2999-12-31 | 7 tensors |" in text
    assert "| 2999-12-31 | expired |" in text
    assert json.loads(render_json(made))["known"][0]["entry"]["expires"] == "2999-12-31"


def test_a_copy_is_said_in_the_verdict() -> None:
    made = comparison(notes=[Note("same_recording", {"how": "files"})])
    assert "that they agree proves nothing" in lines(made)[1]


def test_a_schedule_that_parts_after_the_recorded_steps() -> None:
    rates = Born("schedule", None, step=25_000, size=0.25, by=By.RATES)
    made = comparison(verdict=Status.DIVERGED, exit_code=1, proof=Proof(HAD, born=[rates]))
    assert lines(made)[0] == "nest-ssl 0.1.0 parts from NeMo 3.0.0 in the learning-rate schedule"
    assert bullets(made) == [
        "the learning-rate schedule: learning rates, worked out without training, part (step 25000) by 2.5e-01 of its "
        "size."
    ]


def test_what_the_runs_certify() -> None:
    good = Check(what="repeats", side="reference", compared=425, differing=0)
    bad = Check(what="restarts", side="reference", step=1, compared=425, differing=2, first="decoder.weight")
    made = comparison(proof=Proof(HAD, checks=[good, bad]))
    assert (
        "does not restart at step 1: from its saved state, 423 of 425 tensors have the same bits, the first that "
        in (lines(made)[1])
    )
    text = report_text(made)
    assert "- The reference repeats itself: trained once more, 425 of 425 tensors have the same bits." in text
    assert json.loads(render_json(made))["proof"]["checks"][1]["first"] == "decoder.weight"
