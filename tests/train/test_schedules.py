"""The schedules against their definitions, settings that cannot be right. (Against NeMo: against_nemo/test_optim.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from nest_ssl.base.errors import UserError
from nest_ssl.train.schedules import build_schedule, planned_steps

NOAM = {"name": "NoamAnnealing", "d_model": 64, "warmup_steps": 10, "warmup_ratio": None, "min_lr": 1e-6}


def rates(section: dict[str, Any], count: int, lr: float = 5.0, max_steps: int | None = 1000) -> list[float]:
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


def test_noam_hold_keeps_its_peak() -> None:
    seen = rates({"name": "NoamHoldAnnealing", "warmup_steps": 4, "hold_steps": 6, "min_lr": 0.5}, 300, max_steps=250)
    assert seen[0] == 1.0 and seen[4:10] == [5.0] * 6 and seen[10] == 5.0 * 4**0.5 / 4**0.5
    assert seen[22] == pytest.approx(5.0 * (4 / 16) ** 0.5) and seen[251:] == [0.5] * 49


def test_cosine_falls_by_half_a_wave_and_stays_where_it_was_told_to() -> None:
    seen = rates({"name": "CosineAnnealing", "warmup_steps": 4, "min_lr": 1.0}, 30, max_steps=20)
    assert seen[3] == 4.0 and seen[12] == pytest.approx(3.0) and seen[20:] == [1.0] * 10
    early = rates({"name": "CosineAnnealing", "warmup_steps": 4, "constant_steps": 8, "min_lr": 1.0}, 30, max_steps=20)
    assert early[0] == 0.0 and early[8] == pytest.approx(3.0) and early[12:] == [1.0] * 18


@pytest.mark.parametrize("section", [None, {}, {"warmup_steps": 3}])
def test_no_schedule_is_a_constant_rate(section: dict[str, Any] | None) -> None:
    assert build_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), section, 100) is None


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({**NOAM, "name": "Nope"}, "WarmupPolicy"),
        ({**NOAM, "warmup_ratio": 0.1}, "null"),
        ({**NOAM, "name": "CosineAnnealing"}, "~model.optim.sched.d_model"),
        ({**NOAM, "hold_steps": 4}, "~model.optim.sched.hold_steps"),
        ({**NOAM, "min_lr": 6.0}, "Lower min_lr"),
        ({"name": "NoamHoldAnnealing", "hold_ratio": 0.3}, "needs warmup_steps"),
        ({"name": "CosineAnnealing", "args": {"name": "auto", "params": {"min_lr": 0.1}}}, "directly below"),
        ({"name": "CosineAnnealing", "args": [1]}, "directly below"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_schedules_that_cannot_be_right(section: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match="model.optim.sched") as error:
        rates(section, 1)
    assert told in str(error.value) and "\n" not in str(error.value)


def trainer(**settings: Any) -> SimpleNamespace:
    usual = {"max_steps": -1, "max_epochs": 3, "accumulate_grad_batches": 2, "limit_train_batches": 1.0,
             "num_devices": 1, "num_nodes": 1}  # fmt: skip
    return SimpleNamespace(**{**usual, **settings})


def test_how_long_training_is() -> None:
    loader = DataLoader(list(range(10)), batch_size=4)
    assert planned_steps({}, trainer(), loader) == 6
    assert planned_steps({}, trainer(max_steps=5), loader) == 5
    assert planned_steps({"max_steps": 8}, trainer(), loader) == 8
    assert planned_steps({"max_steps": -1}, trainer(), loader) is None
    assert planned_steps({}, trainer(), None) is None
    with pytest.raises(UserError, match="max_steps=-2"):
        planned_steps({"max_steps": -2}, trainer(), loader)
