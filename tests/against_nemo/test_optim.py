"""Optimizers and schedules against NeMo's own `setup_optimization`: every rate, every weight, what each refuses.

Both sides get the same model, the same sequence of random gradients and the same stand-in for a Trainer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aligning import SMALL
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from nest_ssl.base.errors import UserError
from nest_ssl.train.optim import build_optimizer
from nest_ssl.train.schedules import build_schedule, planned_steps

pytestmark = pytest.mark.filterwarnings("ignore")  # NeMo's and its libraries' own

STEPS = 60  # ten more than the schedules are planned for
NOAM = {"name": "NoamAnnealing", "d_model": 64, "warmup_steps": 10, "warmup_ratio": None, "min_lr": 1e-6}
HOLD = {"name": "NoamHoldAnnealing", "warmup_steps": 8, "hold_steps": 12, "min_lr": 1e-4}
COSINE = {"name": "CosineAnnealing", "warmup_steps": 7, "min_lr": 1e-4}
ADAMW = {"name": "adamw", "lr": 0.01, "betas": [0.9, 0.98], "weight_decay": 0.001}


def training(**changes: Any) -> SimpleNamespace:
    """What both sides ask of a Trainer."""
    usual = {"max_steps": 50, "max_epochs": 1000, "accumulate_grad_batches": 1, "limit_train_batches": 1.0,
             "num_devices": 1, "num_nodes": 1}  # fmt: skip
    return SimpleNamespace(**{**usual, **changes})


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": ADAMW,
    "adamw, defaults": {"name": "adamw", "lr": 0.01},
    "adamw, amsgrad, eps": {**ADAMW, "amsgrad": True, "eps": 1e-6},
    "adamw, maximize, not foreach": {**ADAMW, "maximize": True, "foreach": False},
    "adam": {"name": "adam", "lr": 0.003, "betas": [0.8, 0.99], "eps": 1e-7, "weight_decay": 0.01},
    "no name": {"lr": 0.003},
    "no rate": {"name": "adamw", "lr": None},
    "sgd": {"name": "sgd", "lr": 0.1},
    "sgd, nesterov": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "sgd, dampening": {"name": "sgd", "lr": 0.1, "momentum": 0.8, "dampening": 0.1},
    "args": {"name": "adamw", "lr": 0.01, "weight_decay": 0.5, "args": {"betas": [0.5, 0.6]}},
    "torch's class": {"_target_": "torch.optim.AdamW", "lr": 0.01, "betas": [0.5, 0.6]},
    "cls": {**ADAMW, "cls": "anything"},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "noam": NOAM,
    "noam, no warm-up": {**NOAM, "warmup_steps": None},
    "noam, warm-up of nothing": {**NOAM, "warmup_steps": 0},
    "noam, ratio": {**NOAM, "warmup_steps": None, "warmup_ratio": 0.33},
    "noam, never past its warm-up": {**NOAM, "warmup_steps": 25_000},
    "noam, high min_lr": {**NOAM, "min_lr": 3e-4},
    "noam, args": {"name": "NoamAnnealing", "args": {"d_model": 512, "warmup_ratio": 0.2}, "d_model": 3},
    "noam, Lightning's keys": {**NOAM, "monitor": "val_loss", "reduce_on_plateau": False},
    "noam hold": HOLD,
    "noam hold, fast decay": {**HOLD, "decay_rate": 1.0, "min_lr": 0.0},
    "noam hold, ratios": {"name": "NoamHoldAnnealing", "warmup_ratio": 0.15, "hold_ratio": 0.3, "decay_rate": 0.7},
    "noam hold, no hold": {"name": "NoamHoldAnnealing", "warmup_steps": 9},
    "noam hold, hold of nothing": {**HOLD, "hold_steps": 0},
    "cosine": COSINE,
    "cosine, no warm-up": {"name": "CosineAnnealing"},
    "cosine, ratio": {"name": "CosineAnnealing", "warmup_ratio": 0.25, "min_lr": 0.002},
    "cosine, warm-up longer than training": {**COSINE, "warmup_steps": 70},
    "cosine, min_lr the rate": {**COSINE, "min_lr": 0.01},
    "cosine, constant end": {**COSINE, "constant_steps": 12},
    "cosine, constant ratio": {"name": "CosineAnnealing", "warmup_ratio": 0.1, "constant_ratio": 0.2},
    "cosine, constant end, no warm-up": {"name": "CosineAnnealing", "constant_steps": 5},
    "cosine, constant end, nothing between": {**COSINE, "constant_steps": 43},
    "warm-up": {"name": "WarmupPolicy", "warmup_steps": 10},
    "warm-up, ratio, min_lr": {"name": "WarmupPolicy", "warmup_ratio": 0.4, "min_lr": 1e-5},
    "constant rate": {"name": "WarmupPolicy"},
    "warm-up and hold": {"name": "WarmupHoldPolicy", "warmup_steps": 5, "hold_steps": 10, "min_lr": 1e-5},
    "hold alone": {"name": "WarmupHoldPolicy", "hold_ratio": 0.5},
    "no name in it": {"d_model": 64},
    "empty": {},
}  # fmt: skip
CASES = {
    **{name: (section, training(), None) for name, section in OPTIMIZERS.items()},
    **{f"sched: {name}": ({**ADAMW, "sched": section}, training(), None) for name, section in SCHEDULES.items()},
    "sched: its own max_steps": ({**ADAMW, "sched": {**COSINE, "max_steps": 30}}, training(max_steps=-1), None),
    "sched: the trainer's max_steps first": ({**ADAMW, "sched": {**COSINE, "max_steps": 30}}, training(), None),
    "sched: max_steps -1": ({**ADAMW, "sched": {**COSINE, "max_steps": -1}}, training(max_steps=-1), None),
    "sched: of epochs": ({**ADAMW, "sched": COSINE}, training(max_steps=-1, max_epochs=7), None),
    "sched: epochs without end": (
        {**ADAMW, "sched": {"name": "WarmupPolicy", "min_lr": 1e-4}}, training(max_steps=-1, max_epochs=-1), None),
    "groups": ({**ADAMW, "sched": NOAM}, training(), {"encoder": {"lr": 0.002}, "decoder": {"weight_decay": 0.3}}),
    "groups, cosine with a constant end": (
        {**ADAMW, "sched": {**COSINE, "constant_steps": 9}}, training(), {"decoder": {"lr": 0.03}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(pair: Callable[..., Any]) -> SimpleNamespace:
    """NeMo's model and the port's, from one seed."""
    both = pair(*SMALL, "model.encoder.use_bias=false")
    both.nemo._train_dl = DataLoader(list(range(53)), batch_size=4)
    OmegaConf.set_struct(both.nemo._cfg, False)
    initial = {name: tensor.clone() for name, tensor in both.nemo.state_dict().items()}
    return SimpleNamespace(nemo=both.nemo, nest=both.nest, initial=initial)


@pytest.fixture
def set_up(models: SimpleNamespace) -> Callable[..., tuple[Any, Any, Any, Any]]:
    """`set_up(section, trainer, groups)`: NeMo's optimizer and schedule, and the port's, each of a fresh model."""

    def both(section: dict[str, Any], trainer: Any, groups: dict[str, Any] | None = None) -> tuple[Any, Any, Any, Any]:
        for model in (models.nemo, models.nest):
            model.load_state_dict(models.initial)
            model.zero_grad()
        models.nemo._trainer = trainer
        models.nemo._cfg.pop("optim_param_groups", None)
        if groups is not None:
            models.nemo._cfg.optim_param_groups = groups
        reference, schedule = models.nemo.setup_optimization(section)
        candidate = build_optimizer(models.nest, section, groups)
        sched = section.get("sched")
        steps = None if sched is None else planned_steps(sched, trainer, models.nemo._train_dl)
        return reference, schedule and schedule["scheduler"], candidate, build_schedule(candidate, sched, steps)

    return both


@functools.cache
def gradients(step: int, shapes: tuple[torch.Size, ...]) -> list[torch.Tensor]:
    """Drawn once for all cases; no one writes to them."""
    draws = torch.Generator().manual_seed(step)
    return [10.0 ** (step % 5 - 3) * torch.randn(shape, generator=draws) for shape in shapes]


def give_gradients(model: nn.Module, step: int) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(trained, gradients(step, tuple(p.shape for p in trained)), strict=True):
        parameter.grad = gradient


@pytest.mark.parametrize("case", CASES)
def test_rates_weights_and_states_are_nemos(
    case: str, models: SimpleNamespace, set_up: Callable[..., Any], same_bits: Callable[[Any, Any], None]
) -> None:
    reference, reference_schedule, candidate, candidate_schedule = set_up(*CASES[case])
    assert isinstance(candidate, type(reference))
    for one, other in ((reference, candidate), (reference_schedule, candidate_schedule)):
        assert type(one).__name__ == type(other).__name__
    for step in range(STEPS):
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in (reference, candidate)]
        assert repr(rates[0]) == repr(rates[1]), step
        for model, optimizer, schedule in (
            (models.nemo, reference, reference_schedule),
            (models.nest, candidate, candidate_schedule),
        ):
            give_gradients(model, step)
            optimizer.step()
            if schedule is not None:
                schedule.step()
        same_bits(dict(models.nemo.named_parameters()), dict(models.nest.named_parameters()))
    same_bits(reference.state_dict(), candidate.state_dict())
    if candidate_schedule is not None:
        state, known = candidate_schedule.state_dict(), reference_schedule.state_dict()
        assert {key: repr(known[key]) for key in state} == {key: repr(value) for key, value in state.items()}
        assert known.keys() - state.keys() <= {"_last_warmup_lr"}  # which nothing reads


@pytest.mark.parametrize(
    ("drop_last", "samples", "limit", "accumulate", "devices"),
    list(itertools.product([False, True], [53, 3], [1.0, 1, 0.5, 0.0, 7, 100], [1, 3], [1, 2])),
)
def test_steps_in_epochs_are_nemos(
    drop_last: bool, samples: int, limit: float, accumulate: int, devices: int, models: SimpleNamespace
) -> None:
    models.nemo._trainer = training(
        max_steps=-1, max_epochs=11, limit_train_batches=limit, accumulate_grad_batches=accumulate, num_devices=devices
    )
    loader = DataLoader(list(range(samples)), batch_size=4, drop_last=drop_last)
    before, models.nemo._train_dl = models.nemo._train_dl, loader
    try:
        _, schedule = models.nemo.setup_optimization({**ADAMW, "sched": NOAM})
    finally:
        models.nemo._train_dl = before
    assert schedule["scheduler"].max_steps == planned_steps(NOAM, models.nemo._trainer, loader)


WRONG: dict[str, dict[str, Any]] = {
    "sched null": {**ADAMW, "sched": None},
    "capitals": {**ADAMW, "name": "AdamW"},
    "unknown key": {**ADAMW, "beta": 0.9},
    "betas beyond 1": {**ADAMW, "betas": [0.9, 1.5]},
    "nesterov without momentum": {"name": "sgd", "lr": 0.1, "nesterov": True},
    "sgd with betas": {**ADAMW, "name": "sgd"},
    "sched of another kind": {**ADAMW, "sched": {**NOAM, "name": "CosineAnnealing"}},
    "iters_per_batch": {**ADAMW, "sched": {**NOAM, "iters_per_batch": 4}},
    "no d_model": {**ADAMW, "sched": {"name": "NoamAnnealing", "warmup_steps": 3}},
    "two warm-ups": {**ADAMW, "sched": {**NOAM, "warmup_ratio": 0.1}},
    "two holds": {**ADAMW, "sched": {**HOLD, "hold_ratio": 0.1}},
    "two constant ends": {**ADAMW, "sched": {**COSINE, "constant_steps": 1, "constant_ratio": 0.1}},
    "noam, min_lr above the rate": {**ADAMW, "sched": {**NOAM, "min_lr": 0.02}},
    "cosine, min_lr above the rate": {**ADAMW, "sched": {"name": "CosineAnnealing", "min_lr": 0.02}},
    "cosine, constant end, min_lr the rate": {**ADAMW, "sched": {**COSINE, "constant_steps": 9, "min_lr": 0.01}},
    "noam hold without warm-up": {**ADAMW, "sched": {"name": "NoamHoldAnnealing", "hold_steps": 0}},
    "last_epoch": {**ADAMW, "sched": {**NOAM, "last_epoch": 5}},
}


@pytest.mark.parametrize("case", WRONG)
def test_where_nemo_stops_there_is_one_line_before_training(case: str, models: SimpleNamespace) -> None:
    models.nemo._trainer = training()
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever NeMo stops with
        models.nemo.setup_optimization(WRONG[case])
    with pytest.raises(UserError, match="model.optim"):
        build_schedule(build_optimizer(nn.Linear(1, 1), WRONG[case]), WRONG[case].get("sched"), 1_000_000)
