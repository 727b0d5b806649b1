"""Learning-rate schedules by NeMo's names, keys and quirks.

Source: NeMo 3.0.0 `nemo.core.optim.lr_scheduler` (2.4.1 and 2.7.3 have the same numbers). NoamAnnealing is that of
Vaswani et al. 2017, section 5.3, times a factor; NoamHoldAnnealing comes from Squeezeformer (arXiv 2206.00888).
Attributes carry NeMo's names, so that a schedule's state means the same in a checkpoint of either side.

The order of products and divisions is part of the bits of a rate, so formulas stand as NeMo evaluates them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nest_ssl.base.errors import UserError
from nest_ssl.config.optim import Sched
from nest_ssl.config.section import read

WHERE = "model.optim.sched"


class WarmupPolicy(LRScheduler):
    """Linear warm-up to the optimizer's rate, then that rate; `min_lr` once `max_steps` are over.

    Args:
        optimizer: the rates to set; a group's own rate is the peak that its schedule starts from.
        settings: of the section.
        max_steps: optimizer steps that the schedule is planned for.
    """

    def __init__(self, optimizer: Optimizer, settings: Sched, max_steps: int) -> None:
        self.max_steps, self.min_lr = max_steps, settings.min_lr
        self.warmup_steps = _stage(settings, "warmup", max_steps)
        super().__init__(optimizer, settings.last_epoch)

    def get_lr(self) -> list[Any]:  # a whole number stays one, as in NeMo
        return [self.rate(self.last_epoch, peak) for peak in self.base_lrs]

    def rate(self, step: int, peak: Any) -> Any:
        """The rate of optimizer step `step`, counted from 0."""
        if self.is_warming_up(step):
            return peak * ((step + 1) / (self.warmup_steps + 1))
        return self.min_lr if step > self.max_steps else self.annealed(step, peak)

    def is_warming_up(self, step: int) -> bool:
        return bool(self.warmup_steps > 0 and step <= self.warmup_steps)

    def annealed(self, step: int, peak: Any) -> Any:
        """The rate after warm-up and hold."""
        return peak


class WarmupHoldPolicy(WarmupPolicy):
    """As `WarmupPolicy`, with a plateau between warm-up and annealing. `hold_steps` is the step at which it ends."""

    def __init__(self, optimizer: Optimizer, settings: Sched, max_steps: int) -> None:
        has_hold = settings.hold_steps is not None or settings.hold_ratio is not None
        ends = _stage(settings, "hold", max_steps) + _stage(settings, "warmup", max_steps)
        self.hold_steps = ends if has_hold else 0
        super().__init__(optimizer, settings, max_steps)

    def rate(self, step: int, peak: Any) -> Any:
        holds = self.warmup_steps <= step < self.hold_steps
        return peak if holds and not self.is_warming_up(step) else super().rate(step, peak)


class NoamHoldAnnealing(WarmupHoldPolicy):
    """Warm-up, plateau, then decay with a power of the step, `decay_rate`. The peak is the optimizer's rate."""

    def __init__(self, optimizer: Optimizer, settings: Sched, max_steps: int) -> None:
        self.decay_rate = settings.decay_rate
        super().__init__(optimizer, settings, max_steps)
        if not self.warmup_steps:
            raise ValueError("NoamHoldAnnealing needs warmup_steps or warmup_ratio")

    def annealed(self, step: int, peak: Any) -> Any:
        held = self.hold_steps - self.warmup_steps if self.hold_steps > 0 else 0
        scaled = peak * max(1, self.warmup_steps**self.decay_rate)
        return max(scaled / max(1, (step - held) ** self.decay_rate), self.min_lr)


class CosineAnnealing(WarmupPolicy):
    """Warm-up, then half a cosine down to `min_lr`; with `constant_steps` it gets there that much earlier and stays.

    With `constant_steps` the warm-up starts from zero, and every parameter group follows the first one's rate (NeMo).
    """

    def __init__(self, optimizer: Optimizer, settings: Sched, max_steps: int) -> None:
        self.constant_steps = _stage(settings, "constant", max_steps)
        _check_peak(optimizer, settings.min_lr, may_equal=not self.constant_steps)
        self.decay_steps = max_steps - (self.constant_steps + _stage(settings, "warmup", max_steps))
        super().__init__(optimizer, settings, max_steps)
        if "min_lr" not in settings.model_fields_set:
            self.min_lr = 0  # NeMo's default here is a whole number, and goes into rates and checkpoints as one

    def rate(self, step: int, peak: Any) -> Any:
        if not self.constant_steps:
            return super().rate(step, peak)
        peak = self.base_lrs[0]
        if self.is_warming_up(step):
            return peak * float(step) / float(self.warmup_steps)
        if step > self.warmup_steps + self.decay_steps:
            return self.min_lr
        part = float(step - self.warmup_steps) / float(self.decay_steps)
        return self.min_lr + 0.5 * (math.cos(math.pi * part) + 1.0) * (peak - self.min_lr)

    def annealed(self, step: int, peak: Any) -> Any:
        part = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)))
        return (peak - self.min_lr) * part + self.min_lr


class NoamAnnealing(WarmupPolicy):
    """Linear warm-up, then decay with the square root of the step; peak `base_lr / sqrt(d_model * warmup_steps)`.

    Steps 0 and 1 share a rate, and `min_lr` holds only after the warm-up, as in NeMo.
    """

    def __init__(self, optimizer: Optimizer, settings: Sched, max_steps: int) -> None:
        _check_peak(optimizer, settings.min_lr)
        if settings.d_model is None:
            raise ValueError("NoamAnnealing needs d_model")
        self._normalize = settings.d_model ** (-0.5)
        super().__init__(optimizer, settings, max_steps)

    def rate(self, step: int, peak: Any) -> Any:
        step = max(1, step)
        falling = step ** (-0.5)
        rising = step * self.warmup_steps ** (-1.5) if self.warmup_steps > 0 else falling
        rate = peak * (self._normalize * min(falling, rising))
        return max(rate, self.min_lr) if step > self.warmup_steps else rate


SCHEDULES: dict[str, type[WarmupPolicy]] = {
    cls.__name__: cls for cls in (NoamAnnealing, NoamHoldAnnealing, CosineAnnealing, WarmupPolicy, WarmupHoldPolicy)
}


def build_schedule(
    optimizer: Optimizer, section: Mapping[str, Any] | None, max_steps: int | None
) -> LRScheduler | None:
    """The schedule of NeMo's `model.optim.sched` section, stepped after every optimizer step.

    None, a constant rate, without a section or a name in it, and where NeMo makes none (`max_steps` None).

    Args:
        optimizer: the rates to set.
        section: in plain builtins.
        max_steps: see `planned_steps`.

    Raises:
        UserError: a schedule that is not offered, or settings that it does not take or that contradict each other.
    """
    settings = read(Sched, section or {}, WHERE)
    name = settings.name
    if name is None or max_steps is None:
        return None
    if settings.args is not None:  # NeMo then reads nothing else
        settings = read(Sched, {"name": name, **settings.args}, WHERE)
    try:
        return SCHEDULES[name](optimizer, settings, max_steps)
    except (TypeError, ValueError, ZeroDivisionError, KeyError) as error:
        raise UserError("a schedule that cannot be right", f"{WHERE}: {error}", "Correct its settings.") from error


def planned_steps(section: Mapping[str, Any], trainer: Any, loader: Any) -> int | None:
    """The optimizer steps that NeMo plans a schedule for; None where it makes no schedule.

    They are the trainer's `max_steps`, or else the section's (where -1 means: no schedule), or else those in
    `max_epochs` as the data loader stands before Lightning shards it. Source: NeMo 3.0.0 `compute_max_steps`.

    Args:
        trainer: Lightning's.
        loader: for training.

    Raises:
        UserError: a negative `max_steps` in the section.
    """
    given: int | None = trainer.max_steps if trainer.max_steps >= 0 else section.get("max_steps")
    if given is not None:
        if given < -1:
            raise UserError("a negative number of steps", f"{WHERE}.max_steps={given}", "Give a whole number from 0.")
        return None if given == -1 else given
    if loader is None:
        return None
    round_batches = math.floor if loader.drop_last else math.ceil
    samples = math.ceil(len(loader.dataset) / max(1, trainer.num_devices * trainer.num_nodes))
    batches, limit = round_batches(samples / loader.batch_size), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return math.ceil(batches / trainer.accumulate_grad_batches) * int(trainer.max_epochs)


def _stage(settings: Sched, name: str, max_steps: int) -> Any:
    """The length of a stage, given in steps or as a part of the whole; 0 if it is not given."""
    ratio = getattr(settings, f"{name}_ratio")
    return int(ratio * max_steps) if ratio is not None else getattr(settings, f"{name}_steps") or 0


def _check_peak(optimizer: Optimizer, min_lr: float, may_equal: bool = True) -> None:
    """NeMo stops at a rate below `min_lr`, at the first step or after the warm-up; here before training."""
    lowest = min(group["lr"] for group in optimizer.param_groups)
    if lowest < min_lr or (lowest == min_lr and not may_equal):
        where = f"model.optim.lr={lowest}, {WHERE}.min_lr={min_lr}"
        raise UserError("a learning rate that is not above its minimum", where, "Lower min_lr.")
