"""What a trainer does around its model: each fault there is placed in its own phase, and no module is blamed for it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader
from train_nest import NEST

from nest_ssl.base.rng import generator_states, rng_digests
from nest_ssl.config.compose import data_paths
from nest_ssl.recording.evidence import Replay
from nest_ssl.recording.reader import Recording
from nest_ssl.replay import replay
from nest_ssl.replay.loop import PHASES
from nest_ssl.run.candidate import build_candidate, run_training_loop
from tests.replay import planted
from tests.replay.conftest import Plant, blamed, recorded, replayed
from tests.replay.planted import optimizer_setting, schedule_off_by_one
from tests.replay.test_planted import FAULTS, named
from tests.test_planted_draws import EVERYTHING


def clipping(model: Any) -> None:
    model.configure_gradient_clipping = lambda *_, **__: nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def gradient_edited_before_the_update(model: Any) -> None:
    model.on_after_backward = lambda: model.decoder.decoder_layers[0].bias.grad.mul_(1.0001)


def loss_scale(model: Any) -> None:
    step = model.training_step
    model.training_step = lambda batch, batch_idx: step(batch, batch_idx) * 1.00001


def no_update(model: Any) -> None:
    def step(epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        kept = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.step(closure=closure)
        with torch.no_grad():
            for parameter, before in zip(model.parameters(), kept, strict=True):
                parameter.copy_(before)

    model.optimizer_step = step


def ascent(model: Any) -> None:
    model.settings.optim["maximize"] = True


def loader_order(model: Any) -> None:
    loader = model._train_loader
    order = list(range(9, -1, -1))
    model._train_loader = DataLoader(loader.dataset, batch_size=3, sampler=order, collate_fn=loader.collate_fn)


def other_audio(model: Any) -> None:
    dataset = model._train_loader.dataset
    original = type(dataset).__getitem__

    class Nudged(type(dataset)):
        def __getitem__(self, index: int) -> Any:
            item = original(self, index)
            item.audio[100] += 2**-15
            return item

    dataset.__class__ = Nudged


def no_optimizer(model: Any) -> None:
    def refuse() -> None:
        raise RuntimeError("no optimizer here")

    model.configure_optimizers = refuse


LOOP_FAULTS = {
    optimizer_setting("eps", 1e-7): {"optimizer"},
    optimizer_setting("weight_decay", 0.0011): {"optimizer"},
    optimizer_setting("lr", 5.00005): {"schedule"},
    schedule_off_by_one: {"schedule"},
    clipping: {"clipping"},
    gradient_edited_before_the_update: {"clipping"},
    loss_scale: {"loss"},
    no_update: {"optimizer"},
    ascent: {"optimizer"},
    loader_order: {"batch"},
    other_audio: {"batch"},
}


def of_the_loop(found: Replay) -> dict[str, set[str]]:
    """Outcomes by phase."""
    return {phase: {unit.outcome for unit in found.units if unit.phase == phase} for phase in PHASES}


@pytest.mark.parametrize("recipe", ["reference", "random_reference"])
def test_the_same_trainer_comes_out_with_the_same_bits(request: pytest.FixtureRequest, recipe: str) -> None:
    recording = request.getfixturevalue(recipe)
    trainer, model = build_candidate(NEST, data_paths(OmegaConf.create(recording.config)))
    before, training = rng_digests(), {name: module.training for name, module in model.named_modules()}
    run_loop = functools.partial(run_training_loop, trainer, model, generator_states())
    found = replay(recording, model, precision=trainer.precision_plugin.forward_context, run_loop=run_loop)
    assert rng_digests() == before
    assert {name: module.training for name, module in model.named_modules()} == training
    assert {unit.outcome for unit in found.units} == {"same bits"}
    assert of_the_loop(found) == {phase: {"same bits"} for phase in PHASES}
    updates = [unit for unit in found.units if unit.phase == "optimizer"]
    assert all(unit.compared > 3 * len(recording.step(0).gradients()) for unit in updates) and len(updates) == 2


@pytest.mark.parametrize(("plant", "phases"), LOOP_FAULTS.items(), ids=named)
def test_a_fault_of_the_loop_is_placed(reference: Recording, plant: Plant, phases: set[str]) -> None:
    found = replayed(reference, plant, loop=True)
    assert blamed(found) == {"": phases}


def test_faults_of_features_a_layer_and_the_optimizer_are_all_named(reference: Recording) -> None:
    plants = planted.stft_padding, planted.attention_scale, optimizer_setting("eps", 1e-7)
    expected = {**FAULTS[planted.stft_padding], **FAULTS[planted.attention_scale], "": {"optimizer"}}
    assert blamed(replayed(reference, *plants, loop=True)) == expected


def test_a_loop_that_does_not_run_is_said_to_and_costs_no_module(reference: Recording) -> None:
    found = replayed(reference, no_optimizer, loop=True)
    assert of_the_loop(found) == {phase: {"raised"} for phase in PHASES}
    assert all("no optimizer here" in unit.why for unit in found.units if unit.phase in PHASES)
    assert blamed(found) == {"": set(PHASES)}


def test_accumulated_and_clipped_gradients(tmp_path: Any) -> None:
    overrides = ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.01", "batches=4", "save_steps=0-3"]
    found = replayed(recorded(tmp_path / "nest", *overrides), loop=True)
    assert {unit.outcome for unit in found.units} == {"same bits", "not replayed"}
    stepped = {(u.step, u.phase) for u in found.units if u.outcome == "not replayed"}
    assert stepped == {(step, phase) for step in (0, 2) for phase in ("clipping", "optimizer", "schedule")}


def test_a_clipping_that_is_removed_is_blamed_alone(tmp_path: Any) -> None:
    def no_clipping(model: Any) -> None:
        model.configure_gradient_clipping = lambda *_, **__: None

    reference = recorded(tmp_path / "nest", "trainer.gradient_clip_val=0.01")
    assert blamed(replayed(reference, no_clipping, loop=True)) == {"": {"clipping"}}


def test_a_training_step_that_raises_is_no_loss_with_the_same_bits(reference: Recording) -> None:
    def crash(model: Any) -> None:
        model.training_step = lambda batch, batch_idx: 1 / 0

    found = of_the_loop(replayed(reference, crash, loop=True))
    assert (found["batch"], found["loss"]) == ({"same bits", "raised"}, {"raised"})


def test_a_validation_between_two_epochs_draws_before_the_next_batch_is_made(tmp_path: Any) -> None:
    """It shuffles nothing, yet its loader's base seed and its masks move the generator that shuffles."""
    epochs = ["batches=null", "trainer.max_steps=2", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    recording = recorded(tmp_path / "nest", *EVERYTHING, *epochs)
    assert recording.index.steps[1].epoch == 1 and recording.validations()
    assert of_the_loop(replayed(recording, loop=True)) == {phase: {"same bits"} for phase in PHASES}
