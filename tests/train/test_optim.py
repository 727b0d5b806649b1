"""The schedule against its definition, and settings that cannot be right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nest_ssl.errors import UserError
from nest_ssl.train.optim import build_optimizer, build_schedule

NOAM = {"name": "NoamAnnealing", "d_model": 64, "warmup_steps": 10, "warmup_ratio": None, "min_lr": 1e-6}


def rates(section: dict, count: int, lr: float = 5.0, max_steps: int | None = None) -> list[float]:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = build_schedule(optimizer, section, max_steps)
    assert schedule is not None
    seen = []
    for _ in range(count):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_noam_warms_up_linearly_and_decays_with_the_square_root() -> None:
    seen = rates(NOAM, 100)
    assert seen[0] == seen[1], "steps 0 and 1 share a learning rate"
    assert seen[10] == max(seen) == pytest.approx(5.0 / (64 * 10) ** 0.5)
    assert seen[4] == pytest.approx(seen[8] / 2) and seen[40] == pytest.approx(seen[10] / 2)


def test_min_lr_holds_only_after_the_warm_up() -> None:
    seen = rates({**NOAM, "min_lr": 0.15}, 40)
    assert seen[0] < 0.1 and seen[30] == 0.15


def test_warmup_ratio_is_a_part_of_the_training() -> None:
    by_ratio = rates({**NOAM, "warmup_steps": None, "warmup_ratio": 0.25}, 20, max_steps=40)
    assert by_ratio == rates(NOAM, 20)


@pytest.mark.parametrize(
    "section",
    [
        {**NOAM, "name": "Nope"},
        {**NOAM, "warmup_ratio": 0.1},
        {**NOAM, "warmup_steps": None, "warmup_ratio": 0.1},
    ],
)
def test_schedules_that_cannot_be_right(section: dict) -> None:
    with pytest.raises(UserError, match="sched"):
        rates(section, 1)


def test_no_schedule_is_a_constant_rate() -> None:
    assert build_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), None, None) is None


def test_frozen_parameters_are_in_the_group_and_stay(tmp_path: object) -> None:
    model = nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    before = model.bias.detach().clone()
    optimizer = build_optimizer(model, {"name": "adamw", "lr": 0.1, "weight_decay": 0.5, "sched": NOAM})
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert len(optimizer.param_groups[0]["params"]) == 2 and torch.equal(model.bias, before)


@pytest.mark.parametrize("section", [{"name": "adamx", "lr": 1.0}, {"name": "adamw", "lr": 1.0, "beta": 0.9}])
def test_optimizers_that_cannot_be_right(section: dict) -> None:
    with pytest.raises(UserError, match="model.optim"):
        build_optimizer(nn.Linear(1, 1), section)
