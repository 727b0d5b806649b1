"""Rung 6: the first difference in execution order, and where it was born."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Birth, Relation
from nest_ssl.compare.rungs.forward import spans_of
from nest_ssl.recording.calls import Call
from tests.compare.builder import Block, Encoder, Model, Plan, edit_tensors, first, judge, left, noted, record

Make = Callable[..., Path]
CALLS = "step_0/layer_outputs.pkl"


def relations(comparison: Comparison, step: int = 0) -> dict[tuple[str, int], Relation]:
    return {(call.module, call.call): call.relation for call in comparison.calls if call.step == step}


def call_of(value: dict[str, Any], module: str, call: int = 0) -> dict[str, Any]:
    return next(entry for entry in value["calls"] if (entry["module"], entry["call"]) == (module, call))


def test_a_leaf_is_born_here(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[0].linear2.forward = lambda x: nn.functional.linear(
            x, model.encoder.layers[0].linear2.weight
        )

    comparison = judge(reference, make(after_build=plant))
    assert first(comparison) == ("forward", 0, "encoder.layers.0.linear2", 0, "output")
    found = relations(comparison)
    assert found["encoder.layers.0.linear2", 0] == Relation.BORN
    assert (found["encoder.layers.0", 0], found["encoder", 0], found["", 0]) == (
        Relation.INSIDE,
        Relation.INSIDE,
        Relation.INSIDE,
    )
    assert found["encoder.layers.1", 0] == found["decoder", 0] == Relation.CAME_IN
    assert ("encoder.layers.0.linear1", 0) not in found
    assert comparison.unexplained == []
    assert comparison.cause is not None
    assert (comparison.cause.birth, comparison.cause.order) == (Birth.OUTPUT, 12)
    assert comparison.cause.calls == 22


def test_a_containers_own_code_after_its_children(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[1].factor = 0.5001

    comparison = judge(reference, make(after_build=plant))
    assert first(comparison) == ("forward", 0, "encoder.layers.1", 0, "output")
    assert relations(comparison)["encoder.layers.1", 0] == Relation.BORN
    assert comparison.cause is not None and comparison.cause.birth == Birth.OWN_CODE


class ScaledBlock(Block):
    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        inner = self.activation(self.linear1(self.norm(x) * 1.5))
        inner = self.batch_norm(inner.transpose(1, 2)).transpose(1, 2)
        return x + self.factor * self.linear2(self.activation(inner)) * self.scale


def test_a_containers_own_code_between_its_children(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[1].forward = ScaledBlock.forward.__get__(model.encoder.layers[1])

    comparison = judge(reference, make(after_build=plant))
    assert first(comparison) == ("forward", 0, "encoder.layers.1.linear1", 0, "inputs.input")
    assert comparison.cause is not None
    assert (comparison.cause.birth, comparison.cause.module) == (Birth.BEFORE_CALL, "encoder.layers.1")
    assert relations(comparison)["encoder.layers.1", 0] == Relation.BORN
    assert comparison.unexplained == []


class OtherFlow(Model):
    """The model's own forward hands something else to the encoder."""

    def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
        features, length = self.preprocessor(audio, length=audio_len)
        tokens = self.quantizer(features)
        masked, masks = self.masking(features)
        encoded, encoded_len = self.encoder(audio_signal=masked * 2, length=length)
        return self.decoder(encoded).log_softmax(-1), encoded_len, masks, tokens


def test_the_models_own_forward(reference: Path, make: Make) -> None:
    comparison = judge(reference, make(model=OtherFlow))
    assert first(comparison) == ("forward", 0, "encoder", 0, "inputs.audio_signal")
    assert comparison.cause is not None
    assert (comparison.cause.birth, comparison.cause.module) == (Birth.BEFORE_CALL, "")


def test_tokens_are_whole_numbers_and_must_match(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        original = model.quantizer.forward
        model.quantizer.forward = lambda features: (original(features) + 1) % 5

    comparison = judge(reference, make(after_build=plant), atol=100.0)
    assert (comparison.exit_code, first(comparison)[2:]) == (1, ("quantizer", 0, "output"))


def test_two_births_in_one_forward(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        tokens = model.quantizer.forward
        model.quantizer.forward = lambda features: (tokens(features) + 1) % 5
        decoder = model.decoder.forward
        model.decoder.forward = lambda x: decoder(x) * 1.01

    comparison = judge(reference, make(after_build=plant))
    assert first(comparison)[2] == "quantizer"
    assert left(comparison) == {"CALLS": ["decoder.output"]}


def test_weights_that_differ_before_the_step_are_told_apart(reference: Path, make: Make) -> None:
    def nudge(model: nn.Module) -> None:
        model.encoder.pre_encode.weight.data[0, 0] += 1

    comparison = judge(reference, make(after_build=nudge))
    assert first(comparison)[0] == "initial_weights"
    assert relations(comparison)["encoder.pre_encode", 0] == Relation.WEIGHTS
    assert comparison.unexplained == []


def test_inputs_that_come_to_nothing(reference: Path, copy: Path) -> None:
    edit_tensors(copy, CALLS, lambda value: call_of(value, "encoder.layers.0")["args"][0].add_(1))
    comparison = judge(reference, copy)
    assert Relation.STOPPED in relations(comparison).values()


# --- how calls are made -----------------------------------------------------------------------------------------------


class ByKeyword(Encoder):
    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        x = audio_signal.transpose(1, 2).reshape(audio_signal.shape[0], -1, 32)
        x = self.pre_encode(input=x)
        for layer in self.layers:
            x = layer(x=x)
        return x, length // 8


def test_keyword_and_position_are_the_same_call(reference: Path, make: Make) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.forward = ByKeyword.forward.__get__(model.encoder)

    comparison = judge(reference, make(after_build=plant))
    assert comparison.verdict == "identical"
    assert noted(comparison, "by_keyword")[0] == {"step": 0, "count": 3, "module": "encoder.pre_encode"}


def test_an_input_may_have_another_name_at_the_same_position(reference: Path, copy: Path) -> None:
    def rename(value: dict[str, Any]) -> None:
        call_of(value, "encoder.pre_encode")["arg_names"] = ["x"]

    edit_tensors(copy, CALLS, rename)
    comparison = judge(reference, copy)
    assert comparison.verdict == "identical"
    assert noted(comparison, "input_names") == [
        {"module": "encoder.pre_encode", "reference": "input", "candidate": "x"}
    ]


@pytest.mark.parametrize("swapped", [False, True])
def test_an_input_on_one_side(reference: Path, copy: Path, swapped: bool) -> None:
    edit_tensors(copy, CALLS, lambda value: call_of(value, "encoder")["kwargs"].pop("length"))
    comparison = judge(*((copy, reference) if swapped else (reference, copy)))
    assert (comparison.exit_code, first(comparison)[2:]) == (1, ("encoder", 0, "inputs.length"))


def test_an_input_of_another_dtype(reference: Path, copy: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        call_of(value, "encoder")["kwargs"]["length"] = call_of(value, "encoder")["kwargs"]["length"].int()

    edit_tensors(copy, CALLS, change)
    assert judge(reference, copy).exit_code == 1


def test_a_training_flag_at_the_call(reference: Path, copy: Path) -> None:
    edit_tensors(copy, CALLS, lambda value: call_of(value, "decoder").update(training=False))
    assert first(judge(reference, copy))[2:] == ("decoder", 0, "training")


def test_the_kth_call_of_a_shared_module(reference: Path, copy: Path) -> None:
    edit_tensors(copy, CALLS, lambda value: call_of(value, "encoder.layers.0.activation", 2)["output"].add_(1))
    comparison = judge(reference, copy)
    assert first(comparison)[2:4] == ("encoder.layers.0.activation", 2)


class FunctionBlock(Block):
    """The second activation by a function, with the same numbers."""

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        inner = self.activation(self.linear1(self.norm(x)))
        inner = self.batch_norm(inner.transpose(1, 2)).transpose(1, 2)
        return x + self.factor * self.linear2(nn.functional.silu(inner)) * self.scale


@pytest.mark.parametrize("swapped", [False, True])
def test_a_call_that_a_function_stands_in_for_is_the_same_computed_otherwise(
    reference: Path, make: Make, swapped: bool
) -> None:
    def plant(model: nn.Module) -> None:
        model.encoder.layers[1].forward = FunctionBlock.forward.__get__(model.encoder.layers[1])

    candidate = make(after_build=plant)
    comparison = judge(*((candidate, reference) if swapped else (reference, candidate)), steps=[0])
    rung = comparison.rung("forward")
    assert (comparison.verdict, rung.status) == ("identical", "identical")
    assert (rung.missing_reference, rung.missing_candidate) == (0, 0)
    (said,) = noted(comparison, "computed_otherwise")
    assert said == {"step": 0, "count": 1, "module": "encoder.layers.0.activation", "around": "encoder.layers.1"}


@pytest.mark.parametrize("swapped", [False, True])
def test_a_call_is_missing_where_what_is_around_it_differs(reference: Path, make: Make, swapped: bool) -> None:
    def plant(model: nn.Module) -> None:
        block = model.encoder.layers[1]
        block.forward = lambda x, pad_mask=None: FunctionBlock.forward(block, x, pad_mask) * 1.001

    candidate = make(after_build=plant)
    comparison = judge(*((candidate, reference) if swapped else (reference, candidate)), steps=[0])
    rung = comparison.rung("forward")
    assert (comparison.verdict, rung.status) == ("diverged", "diverged")
    assert (rung.missing_reference, rung.missing_candidate) == ((1, 0) if swapped else (0, 1))


def test_another_order_of_the_same_calls_is_noted(tmp_path: Path, reference: Path) -> None:
    class TokensLast(Model):
        def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
            features, length = self.preprocessor(audio, length=audio_len)
            masked, masks = self.masking(features)
            encoded, encoded_len = self.encoder(audio_signal=masked, length=length)
            log_probs = self.decoder(encoded).log_softmax(-1)
            return log_probs, encoded_len, masks, self.quantizer(features)

    comparison = judge(reference, record(tmp_path / "nest", Plan(name="nest", model=TokensLast)))
    assert comparison.verdict == "identical"
    assert noted(comparison, "call_order")[0] == {"step": 0, "reference": "quantizer", "candidate": "masking"}


def test_the_models_outputs_are_compared_too(reference: Path, copy: Path) -> None:
    edit_tensors(copy, "step_0/forward_output.pt", lambda output: output["tokens"].add_(1))
    assert first(judge(reference, copy)) == ("forward", 0, None, None, "tokens")


def test_spans_know_what_they_are_inside_of() -> None:
    events = {"": (0, 9), "a": (1, 4), "a.x": (2, 3), "b": (5, 8), "b.x": (6, 7)}
    calls = [
        Call(index, name, 0, True, [], [], {}, start, end, producers={"x": (1, "")} if name == "b" else {})
        for index, (name, (start, end)) in enumerate(events.items())
    ]
    spans = spans_of(calls)
    assert {key[0]: span.parent and span.parent[0] for key, span in spans.items()} == {
        "": None, "a": "", "a.x": "a", "b": "", "b.x": "b",
    }  # fmt: skip
    assert spans["b", 0].producers == {"x": ("a", 0)}


def test_an_input_changed_on_its_way_names_the_call_it_comes_from(reference: Path, make: Make) -> None:
    """The reference hands the encoder what the masking returned, as it is."""
    comparison = judge(reference, make(model=OtherFlow))
    assert comparison.cause is not None and comparison.cause.after == "masking"
