"""Optimizers and learning-rate schedules by NeMo's names and keys.

Sources: NeMo 3.0.0 `nemo.core.optim.lr_scheduler.NoamAnnealing` and `ModelPT.setup_optimization` in
`nemo.core.classes.modelPT`; the schedule is that of Vaswani et al. 2017, section 5.3, times a factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from nest_ssl.errors import UserError

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class NoamAnnealing(LRScheduler):
    """Linear warm-up, then decay with the square root of the step; peak `base_lr / sqrt(d_model * warmup_steps)`.

    Steps 0 and 1 share a learning rate, and `min_lr` holds only after the warm-up, as in NeMo.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        d_model: int,
        warmup_steps: int,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.scale = d_model ** (-0.5)
        self.warmup_steps = warmup_steps
        self.min_lr = min_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        step = max(1, self.last_epoch)
        return [self._at(step, base_lr) for base_lr in self.base_lrs]

    def _at(self, step: int, base_lr: float) -> float:
        # The order of these products is part of the bits of the learning rate.
        falling = step ** (-0.5)
        rising = step * self.warmup_steps ** (-1.5) if self.warmup_steps > 0 else falling
        rate = base_lr * (self.scale * min(falling, rising))
        return max(rate, self.min_lr) if step > self.warmup_steps else rate


def build_optimizer(model: nn.Module, section: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of NeMo's `model.optim` section over all parameters, frozen ones too (they get no gradient).

    Raises:
        UserError: an optimizer that is not offered, or an argument that it does not take.
    """
    name = str(section.get("name") or "adam").lower()
    if name not in OPTIMIZERS:
        raise UserError("unknown optimizer", f"model.optim.name={name}", f"Choose one of: {', '.join(OPTIMIZERS)}.")
    arguments = {key: value for key, value in section.items() if key not in ("name", "sched")}
    try:
        return OPTIMIZERS[name](list(model.parameters()), **arguments)
    except (TypeError, ValueError) as error:
        raise UserError("an optimizer setting is wrong", f"model.optim: {error}", f"See torch's {name}.") from error


def build_schedule(
    optimizer: torch.optim.Optimizer, section: Mapping[str, Any] | None, max_steps: int | None
) -> LRScheduler | None:
    """The schedule of NeMo's `model.optim.sched` section, stepped after every optimizer step; None without a section.

    Args:
        max_steps: optimizer steps of the whole training; `warmup_ratio` is a part of it.

    Raises:
        UserError: a schedule that is not offered, or settings that contradict each other.
    """
    if not section:
        return None
    name = section.get("name")
    if name != "NoamAnnealing":
        raise UserError("unknown schedule", f"model.optim.sched.name={name}", "Choose NoamAnnealing, or sched=null.")
    return NoamAnnealing(
        optimizer,
        d_model=section["d_model"],
        warmup_steps=_warmup_steps(section, max_steps),
        min_lr=section.get("min_lr", 0.0),
    )


def _warmup_steps(section: Mapping[str, Any], max_steps: int | None) -> int:
    steps, ratio = section.get("warmup_steps"), section.get("warmup_ratio")
    if steps is not None and ratio is not None:
        raise UserError(
            "two warm-ups", "model.optim.sched has warmup_steps and warmup_ratio", "Set one of them to null."
        )
    if ratio is None:
        return steps or 0
    total = section.get("max_steps") or max_steps
    if not total:
        raise UserError(
            "a ratio of unknown length", "model.optim.sched.warmup_ratio", "Set trainer.max_steps or warmup_steps."
        )
    return int(ratio * total)
