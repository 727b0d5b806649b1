"""Faults that no call and no backward makes: what a step starts from, what the optimizer is given, validation.

Each was told as something else before it was recorded; each has a harmless twin that is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.findings import Birth
from nest_ssl.record.digest_session import open_session
from nest_ssl.record.levels import ALL, Level
from nest_ssl.record.session import Session
from nest_ssl.recording import layout as files
from nest_ssl.recording.writer import RecordingWriter
from tests.compare.builder import (
    DATA,
    FLAGS,
    OUTPUTS,
    Model,
    Tokens,
    batch_of,
    edit_structure,
    first,
    judge,
    left,
    noted,
    remove,
    statuses,
)

Hook = Callable[..., Any]


def nothing(*_: Any) -> None:
    """Of a loop that has no fault."""


def run(
    out: Path,
    *,
    accumulate: int = 1,
    clear: Hook = lambda step, optimizer: optimizer.zero_grad(),
    between: Hook = nothing,
    batch: Hook = lambda fields: fields,
    build: Callable[[], nn.Module] = Model,
    clip: Hook = lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5),
    validation_loss: Hook = lambda loss: loss,
    min_lr: float = 0.0,
    rate: Hook = lambda step, optimizer: None,
    level: Level = ALL,
) -> Path:
    """Four steps with clipping, a schedule and a validation after the second."""
    torch.manual_seed(42)
    with open_session(RecordingWriter(out), None, OUTPUTS, "{}\n", False, level) as r:
        model = build()
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100, eta_min=min_lr)
        r.begin(model)
        for step in range(4):
            between(step, model)
            if step == 2:
                validate(r, model, validation_loss)
            fields = batch(batch_of(step))
            r.batch(fields)
            outputs = model(**fields)
            loss = model.loss(outputs[0], outputs[3], masks=outputs[2])
            r.loss(loss)
            if step % accumulate == 0:
                clear(step, optimizer)
            loss.backward()
            r.backward_done()
            steps = step % accumulate == accumulate - 1
            if steps:
                clip(model)
                rate(step, optimizer)
                optimizer.step()
                schedule.step()
            r.step_done(optimizer, steps, schedulers=[schedule])
        trainer = {"name": "nemo", "package": "nemo-ssl", "version": "3.0.0"}
        r.finish(trainer=trainer, seed=42, flags=FLAGS, data=DATA, device={"type": "cpu", "name": "a processor"})
    return out


def validate(r: Session, model: nn.Module, validation_loss: Hook) -> None:
    fields = batch_of(9)
    r.validation()
    r.validation_batch(fields)
    with torch.no_grad():
        outputs = model.eval()(**fields)
        loss = validation_loss(model.loss(outputs[0], outputs[3], masks=outputs[2]))
    model.train()
    r.validation_done({"val_loss": loss})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("between") / "sound")


@pytest.fixture(scope="module")
def accumulating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("between") / "accumulating", accumulate=2)


def births(comparison: Comparison) -> list[tuple[str, str | None]]:
    return [(one.phase, one.module) for one in comparison.proof.born]


def placed(comparison: Comparison) -> tuple[Any, ...]:
    assert (comparison.verdict, comparison.exit_code) == ("diverged", 1)
    assert comparison.cause is not None
    rung, step, module, _, name = first(comparison)
    return rung, step, module, name, comparison.cause.birth


def test_a_twin_is_identical(sound: Path, tmp_path: Path) -> None:
    comparison = judge(sound, run(tmp_path / "run"))
    # A twin of the same process may have every file alike, which is worth a note.
    assert comparison.verdict == "identical" and {note.kind for note in comparison.notes} <= {"same_recording"}
    assert set(statuses(comparison).values()) == {"identical"}
    assert all(comparison.rung(name).compared for name in ("validation", "start", "optimizer_input"))


def test_gradients_that_are_not_cleared(sound: Path, tmp_path: Path) -> None:
    comparison = judge(sound, run(tmp_path / "run", clear=nothing))
    assert placed(comparison)[:2] == ("gradients", 1) and placed(comparison)[4] == Birth.NOT_CLEARED
    assert left(comparison) == {}


def test_gradients_that_are_cleared_too_early(accumulating: Path, tmp_path: Path) -> None:
    twice = run(tmp_path / "run", accumulate=2)
    assert judge(accumulating, twice).verdict == "identical"
    comparison = judge(accumulating, run(tmp_path / "early", accumulate=2, between=lambda s, m: m.zero_grad()))
    assert placed(comparison)[:2] == ("gradients", 1) and placed(comparison)[4] == Birth.CLEARED


def test_gradients_set_to_zero_instead_of_none_are_left_alone(sound: Path, tmp_path: Path) -> None:
    zeroed = run(tmp_path / "run", clear=lambda step, optimizer: optimizer.zero_grad(set_to_none=False))
    assert judge(sound, zeroed).verdict == "identical"


def test_gradients_edited_while_they_accumulate(accumulating: Path, tmp_path: Path) -> None:
    def halve(step: int, model: nn.Module) -> None:
        if step == 1:
            model.decoder.bias.grad.mul_(0.5)

    comparison = judge(accumulating, run(tmp_path / "run", accumulate=2, between=halve))
    assert placed(comparison) == ("gradients", 1, "decoder", "bias", Birth.NOT_CLEARED)


def test_an_update_with_every_batch_instead_of_every_second(accumulating: Path, sound: Path) -> None:
    comparison = judge(accumulating, sound)
    assert placed(comparison) == ("optimizer_input", 0, None, "update", Birth.NO_UPDATE)
    assert births(comparison) == [("optimizer", None)]  # rates and cleared gradients follow from it


def test_a_removed_clipping_is_named_alone(sound: Path, accumulating: Path, tmp_path: Path) -> None:
    """Also where the replay has shown it, and the optimizer to make the same of the same gradients."""
    bare = run(tmp_path / "bare", clip=nothing)
    assert births(judge(sound, bare)) == [("clipping", None)]
    assert births(judge(sound, bare, steps=[0])) == [("clipping", None)]
    assert births(judge(accumulating, run(tmp_path / "run", accumulate=2, clip=nothing))) == [("clipping", None)]


def test_statistics_that_a_validation_leaves_behind(sound: Path, tmp_path: Path) -> None:
    def unlike(step: int, model: nn.Module) -> None:
        if step == 2:
            with torch.no_grad():
                model.encoder.layers[0].batch_norm(torch.ones(4, 8, 3))

    comparison = judge(sound, run(tmp_path / "run", between=unlike))
    assert placed(comparison)[:3] == ("validation", 2, "encoder"), "met by the validation, which is recorded"
    for out in (sound, tmp_path / "run"):
        remove(out, files.validation_file(0)) if out != sound else None
    apart = judge(sound, tmp_path / "run", steps=[0, 1, 2])
    assert [f.address.module for f in apart.rung("start").findings] == ["encoder.layers.0.batch_norm"] * 3


def test_weights_that_are_changed_between_two_steps(sound: Path, tmp_path: Path) -> None:
    def put_back(step: int, model: nn.Module) -> None:
        if step == 1:
            model.decoder.bias.data.zero_()

    comparison = judge(sound, run(tmp_path / "run", between=put_back))
    assert placed(comparison) == ("start", 1, "decoder", "bias", Birth.BETWEEN_STEPS)
    assert left(comparison) == {}


def test_a_mode_that_is_switched_between_two_steps(sound: Path, tmp_path: Path) -> None:
    def freeze(step: int, model: nn.Module) -> None:
        model.encoder.layers[1].batch_norm.train(step < 1)

    comparison = judge(sound, run(tmp_path / "run", between=freeze))
    assert placed(comparison) == ("start", 1, "encoder.layers.1.batch_norm", "training", Birth.MODE)


def test_a_mode_that_is_switched_in_the_forward(sound: Path, tmp_path: Path) -> None:
    class Switching(Model):
        def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
            self.encoder.layers[1].batch_norm.eval()
            return super().forward(audio, audio_len)

    comparison = judge(sound, run(tmp_path / "run", build=Switching))
    assert placed(comparison) == ("forward", 0, "encoder.layers.1.batch_norm", "training", Birth.MODE)
    assert ("forward", "encoder.layers.1.batch_norm") in births(comparison)


class EditsAudio(Model):
    def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
        audio.data.mul_(1.01)
        return super().forward(audio, audio_len)


def with_edited_features() -> Model:
    """The edit is made where the quantizer is called, before anything in it runs."""

    def call(quantizer: nn.Module, features: Tensor) -> Tensor:
        features.data.mul_(1.01)
        return nn.Module.__call__(quantizer, features)

    model = Model()
    model.quantizer.__class__ = type("Tokens", (Tokens,), {"__call__": call})
    return model


@pytest.mark.parametrize(
    ("build", "module", "name"),
    [(EditsAudio, "preprocessor", "inputs.audio"), (with_edited_features, "quantizer", "inputs.features")],
)
def test_an_edit_that_the_version_of_a_tensor_does_not_count(
    sound: Path, tmp_path: Path, build: Callable[[], nn.Module], module: str, name: str
) -> None:
    comparison = judge(sound, run(tmp_path / "run", build=build))
    assert placed(comparison) == ("forward", 0, module, name, Birth.BEFORE_CALL)


class InPlace(Model):
    """Scales its audio in place, and then looks at the lengths."""

    def forward(self, audio: Tensor, audio_len: Tensor) -> tuple[Tensor, ...]:
        audio.mul_(0.5)
        return super().forward(audio, (audio_len / audio_len.max() * 32).long())


def overlapping(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """The lengths in the first bytes of the memory of the audio, which therefore begins with them."""
    memory = fields["audio"].clone()
    lengths = memory.view(torch.int64).flatten()[:2]
    lengths.copy_(fields["audio_len"])
    return {"audio": memory, "audio_len": lengths}


def apart(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: field.clone() for name, field in overlapping(fields).items()}


def test_fields_in_one_memory_that_the_forward_edits(tmp_path: Path) -> None:
    comparison = judge(
        run(tmp_path / "apart", build=InPlace, batch=apart), run(tmp_path / "one", build=InPlace, batch=overlapping)
    )
    assert placed(comparison) == ("batch", 0, None, "audio.memory", Birth.MEMORY)


def test_fields_in_one_memory_that_the_forward_leaves_are_a_note(tmp_path: Path) -> None:
    comparison = judge(run(tmp_path / "apart", batch=apart), run(tmp_path / "one", batch=overlapping))
    assert comparison.verdict == "identical"
    assert noted(comparison, "shared_memory")[0]["path"] == "audio"


def test_parameters_in_one_memory(sound: Path, tmp_path: Path) -> None:
    def tied() -> Model:
        model = Model()
        with torch.no_grad():
            model.encoder.layers[1].norm.weight.data = model.encoder.layers[0].norm.weight.data
        return model

    comparison = judge(sound, run(tmp_path / "run", build=tied))
    assert placed(comparison)[:4] == ("structure", None, "encoder.layers.0.norm", "weight.memory")


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        (nothing, "applied_grad.factor"),
        (lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.5001), "applied_grad.factor"),
        (lambda model: nn.utils.clip_grad_norm_(model.encoder.parameters(), 0.5), "applied_grad.factor"),
        (lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01), "applied_grad.factor"),
    ],
    ids=["none", "another norm", "the encoder alone", "by value"],
)
def test_clipping(sound: Path, tmp_path: Path, clip: Hook, name: str) -> None:
    comparison = judge(sound, run(tmp_path / "run", clip=clip))
    assert placed(comparison) == ("optimizer_input", 0, None, name, Birth.CLIPPING)
    assert left(comparison) == {}


def test_a_gradient_edited_behind_the_clipping(sound: Path, tmp_path: Path) -> None:
    def edit(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        model.decoder.bias.grad.mul_(1.0001)

    comparison = judge(sound, run(tmp_path / "run", clip=edit))
    assert placed(comparison)[:3] == ("optimizer_input", 0, "decoder")


def test_a_rate_that_only_this_update_uses(sound: Path, tmp_path: Path) -> None:
    def twice(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == 1:
            optimizer.param_groups[0]["lr"] *= 1.00001

    comparison = judge(sound, run(tmp_path / "run", rate=twice))
    assert placed(comparison) == ("optimizer_input", 1, None, "param_groups.0.lr", Birth.OPTIMIZER_SETTING)


def test_a_step_that_is_taken_twice(sound: Path, tmp_path: Path) -> None:
    comparison = judge(sound, run(tmp_path / "run", rate=lambda step, optimizer: optimizer.step()))
    assert births(comparison) == [("optimizer", None)]


def test_an_optimizer_state_that_is_lost_between_two_steps(sound: Path, tmp_path: Path) -> None:
    def lose(step: int, optimizer: torch.optim.Optimizer) -> None:
        if step == 2:
            for state in optimizer.state.values():
                state["exp_avg"].zero_()

    comparison = judge(sound, run(tmp_path / "run", clear=lambda s, o: (o.zero_grad(), lose(s, o))))
    assert placed(comparison)[:2] == ("optimizer_input", 2)
    assert placed(comparison)[4] == Birth.OPTIMIZER_STATE


def test_a_schedule_that_differs_only_later(sound: Path, tmp_path: Path) -> None:
    comparison = judge(sound, run(tmp_path / "run", min_lr=1e-12), steps=[0])
    assert placed(comparison) == ("weights", 0, None, "0.eta_min", Birth.SCHEDULE)


def test_a_validation_loss_that_is_doubled(sound: Path, tmp_path: Path) -> None:
    comparison = judge(sound, run(tmp_path / "run", validation_loss=lambda loss: 2 * loss))
    assert placed(comparison) == ("validation", 2, None, "val_loss", Birth.VALIDATION)
    assert [rung for rung, status in statuses(comparison).items() if status != "identical"] == ["validation"]


def test_a_validation_that_one_side_does_not_make(sound: Path, tmp_path: Path) -> None:
    run(tmp_path / "run")
    remove(tmp_path / "run", files.validation_file(0))
    assert placed(judge(sound, tmp_path / "run"))[:2] == ("validation", 2)


@pytest.mark.parametrize("older", ["reference", "candidate", "both"])
def test_recordings_of_before_are_compared_by_what_they_have(sound: Path, tmp_path: Path, older: str) -> None:
    new = run(tmp_path / "new")
    old = run(tmp_path / "old")
    as_before(old)
    sides = {"reference": (old, new), "candidate": (new, old), "both": (old, old)}[older]
    older_sides = {"reference", "candidate"} if older == "both" else {older}
    comparison = judge(*sides)
    assert (comparison.verdict, comparison.exit_code) == ("identical", 0)
    assert {note["side"] for note in noted(comparison, "older_recording")} == older_sides
    assert not {"validation", "start", "optimizer_input"} & statuses(comparison).keys()


def as_before(recording: Path) -> None:
    """Without what a recorder of before did not write."""
    names = (files.STEP_START, files.OPTIMIZER_START, files.APPLIED_GRADIENTS, files.FACTS)
    for name in [f"step_{step}/{name}" for step in range(4) for name in names] + [files.validation_file(0)]:
        remove(recording, name)
    edit_structure(recording, lambda structure: structure.pop("shared"))


def test_what_is_born_between_the_calls_is_in_the_list_of_births(sound: Path, tmp_path: Path) -> None:
    """One fault of each kind at once: each has a place of its own, and nothing else has one."""

    def put_back(step: int, model: nn.Module) -> None:
        if step == 1:
            model.decoder.bias.data.zero_()

    def born(out: Path, **faults: Any) -> list[tuple[str, str | None]]:
        return births(judge(sound, run(out, **faults)))

    assert born(tmp_path / "none") == []
    assert born(tmp_path / "weights", between=put_back) == [("between steps", "decoder")]
    assert born(tmp_path / "clear", clear=nothing) == [("backward", None)]
    assert born(tmp_path / "rate", min_lr=1e-12)[0] == ("schedule", None)
    assert born(tmp_path / "loss", validation_loss=lambda loss: 2 * loss) == [("validation", None)]
