"""Learning-rate schedules by NeMo's names, keys and quirks.

Source: NeMo 3.0.0 `nemo.core.optim.lr_scheduler` (2.4.1 and 2.7.3 have the same numbers). NoamAnnealing is that of
Vaswani et al. 2017, section 5.3, times a factor; NoamHoldAnnealing comes from Squeezeformer (arXiv 2206.00888).
Attributes carry NeMo's names, so that a schedule's state means the same in a checkpoint of either side.

The order of products and divisions is part of the bits of a rate, so formulas stand as NeMo evaluates them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from nest_ssl.base.errors import UserError

WHERE = "model.optim.sched"


class WarmupPolicy(LRScheduler):
    """Linear warm-up to the optimizer's rate, then that rate; `min_lr` once `max_steps` are over.

    Args:
        optimizer: whose rate to set; a group's own rate is the peak that its schedule starts from.
        max_steps: optimizer steps that the schedule is planned for.
        warmup_steps, warmup_ratio: length of the warm-up, in steps or as a part of `max_steps`; not both.
        min_lr: what the rate ends at.
        last_epoch: -1, a fresh start.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.max_steps, self.min_lr = max_steps, min_lr
        self.warmup_steps = _stage("warmup", warmup_steps, warmup_ratio, max_steps)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        return [self.rate(self.last_epoch, peak) for peak in self.base_lrs]

    def rate(self, step: int, peak: float) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        if self.is_warming_up(step):
            return peak * ((step + 1) / (self.warmup_steps + 1))
        return self.min_lr if step > self.max_steps else self.annealed(step, peak)

    def is_warming_up(self, step: int) -> bool:
        return self.warmup_steps > 0 and step <= self.warmup_steps

    def annealed(self, step: int, peak: float) -> float:
        """The rate after warm-up and hold."""
        return peak


class WarmupHoldPolicy(WarmupPolicy):
    """As `WarmupPolicy`, with a plateau between warm-up and annealing.

    Args:
        hold_steps, hold_ratio: length of the plateau, in steps or as a part of `max_steps`; not both.
        others: as `WarmupPolicy` has them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        hold_steps: int | None = None,
        hold_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        held = _stage("hold", hold_steps, hold_ratio, max_steps)
        has_hold = hold_steps is not None or hold_ratio is not None
        # The step at which the plateau ends; 0 without one.
        self.hold_steps = held + _stage("warmup", warmup_steps, warmup_ratio, max_steps) if has_hold else 0
        warmup = {"warmup_steps": warmup_steps, "warmup_ratio": warmup_ratio}
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, last_epoch=last_epoch, **warmup)

    def rate(self, step: int, peak: float) -> float:
        holds = self.warmup_steps <= step < self.hold_steps
        return peak if holds and not self.is_warming_up(step) else super().rate(step, peak)


class NoamHoldAnnealing(WarmupHoldPolicy):
    """Warm-up, plateau, then decay with a power of the step. The peak is the optimizer's rate.

    Args:
        decay_rate: the power; 0.5 as in Noam.
        others: as `WarmupHoldPolicy` has them; a warm-up is needed.
    """

    def __init__(
        self, optimizer: Optimizer, *, max_steps: int, decay_rate: float = 0.5, min_lr: float = 0.0, **stages: Any
    ) -> None:
        self.decay_rate = decay_rate
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **stages)
        if not self.warmup_steps:
            raise ValueError("NoamHoldAnnealing needs warmup_steps or warmup_ratio")

    def annealed(self, step: int, peak: float) -> float:
        held = self.hold_steps - self.warmup_steps if self.hold_steps > 0 else 0
        scaled = peak * max(1, self.warmup_steps**self.decay_rate)
        return max(scaled / max(1, (step - held) ** self.decay_rate), self.min_lr)


class CosineAnnealing(WarmupPolicy):
    """Warm-up, then half a cosine down to `min_lr`; with `constant_steps` it gets there that much earlier and stays.

    With `constant_steps` the warm-up starts from zero, and every parameter group follows the first one's rate (NeMo).

    Args:
        constant_steps, constant_ratio: how long to stay at `min_lr`, in steps or as a part of `max_steps`; not both.
        others: as `WarmupPolicy` has them; `min_lr` must not exceed the optimizer's rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_steps: int,
        min_lr: float = 0,
        constant_steps: int | None = None,
        constant_ratio: float | None = None,
        **warmup: Any,
    ) -> None:
        self.constant_steps = _stage("constant", constant_steps, constant_ratio, max_steps)
        _check_peak(optimizer, min_lr, may_equal=not self.constant_steps)
        steps, ratio = warmup.get("warmup_steps"), warmup.get("warmup_ratio")
        self.decay_steps = max_steps - (self.constant_steps + _stage("warmup", steps, ratio, max_steps))
        super().__init__(optimizer, max_steps=max_steps, min_lr=min_lr, **warmup)

    def rate(self, step: int, peak: float) -> float:
        return self._with_constant_end(step, self.base_lrs[0]) if self.constant_steps else super().rate(step, peak)

    def annealed(self, step: int, peak: float) -> float:
        part = 0.5 * (1 + math.cos(math.pi * (step - self.warmup_steps) / (self.max_steps - self.warmup_steps)))
        return (peak - self.min_lr) * part + self.min_lr

    def _with_constant_end(self, step: int, peak: float) -> float:
        if self.is_warming_up(step):
            return peak * float(step) / float(self.warmup_steps)
        if step > self.warmup_steps + self.decay_steps:
            return self.min_lr
        part = float(step - self.warmup_steps) / float(self.decay_steps)
        return self.min_lr + 0.5 * (math.cos(math.pi * part) + 1.0) * (peak - self.min_lr)


class NoamAnnealing(LRScheduler):
    """Linear warm-up, then decay with the square root of the step; peak `base_lr / sqrt(d_model * warmup_steps)`.

    Steps 0 and 1 share a rate, and `min_lr` holds only after the warm-up, as in NeMo.

    Args:
        d_model: the encoder's.
        others: as `WarmupPolicy` has them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        d_model: int,
        max_steps: int | None = None,
        warmup_steps: int | None = None,
        warmup_ratio: float | None = None,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        _check_peak(optimizer, min_lr)
        self._normalize = d_model ** (-0.5)
        self.max_steps, self.min_lr = max_steps, min_lr
        self.warmup_steps = _stage("warmup", warmup_steps, warmup_ratio, max_steps)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        step = max(1, self.last_epoch)
        return [self.rate(step, base_lr) for base_lr in self.base_lrs]

    def rate(self, step: int, base_lr: float) -> float:
        """The rate of optimizer step `step`, counted from 1."""
        falling = step ** (-0.5)
        rising = step * self.warmup_steps ** (-1.5) if self.warmup_steps > 0 else falling
        rate = base_lr * (self._normalize * min(falling, rising))
        return max(rate, self.min_lr) if step > self.warmup_steps else rate


SCHEDULES: dict[str, type[LRScheduler]] = {
    cls.__name__: cls for cls in (NoamAnnealing, NoamHoldAnnealing, CosineAnnealing, WarmupPolicy, WarmupHoldPolicy)
}
# Keys that NeMo's `prepare_lr_scheduler` takes out of the section: Lightning's, and those that it fills in itself.
NOT_THE_SCHEDULES = frozenset({
    "name", "monitor", "reduce_on_plateau", "t_max_epochs", "t_accumulate_grad_batches", "t_limit_train_batches",
    "t_num_workers",
})  # fmt: skip


def takes(schedule: type[LRScheduler]) -> frozenset[str]:
    """The settings that a schedule takes, those of the classes that it extends included."""
    parameters = [p for cls in schedule.__mro__ if cls.__name__ in SCHEDULES for p in _parameters(cls)]
    return frozenset(parameters) - {"self", "optimizer"}


def allowed_keys() -> frozenset[str]:
    """Every key that may stand below `model.optim.sched`."""
    return NOT_THE_SCHEDULES | {"args"} | frozenset().union(*map(takes, SCHEDULES.values()))


def build_schedule(
    optimizer: Optimizer, section: Mapping[str, Any] | None, max_steps: int | None
) -> LRScheduler | None:
    """The schedule of NeMo's `model.optim.sched` section, stepped after every optimizer step.

    None, a constant rate, without a section or a name in it, and where NeMo makes none (`max_steps` None).

    Args:
        optimizer: whose rate to set.
        section: in plain builtins.
        max_steps: see `planned_steps`.

    Raises:
        UserError: a schedule that is not offered, or settings that it does not take or that contradict each other.
    """
    if not section or "name" not in section or max_steps is None:
        return None
    name = section["name"]
    if name not in SCHEDULES:
        fix = f"Choose one of: {', '.join(SCHEDULES)}; or a constant rate: ~{WHERE}."
        raise UserError("unknown schedule", f"{WHERE}.name={name}", fix)
    settings = {**_settings(section), "max_steps": max_steps}
    for key in settings:
        if key not in takes(SCHEDULES[name]):
            raise UserError(f"{name} does not take {key}", f"{WHERE}.{key}", f"Remove it: ~{WHERE}.{key}.")
    try:
        return SCHEDULES[name](optimizer, **settings)
    except (TypeError, ValueError, ZeroDivisionError, KeyError) as error:
        raise UserError("a schedule that cannot be right", f"{WHERE}: {error}", "Mend its settings.") from error


def planned_steps(section: Mapping[str, Any], trainer: Any, loader: Any) -> int | None:
    """The optimizer steps that NeMo plans a schedule for; None where it makes no schedule.

    They are the trainer's `max_steps`, or else the section's (where -1 means: no schedule), or else those in
    `max_epochs` as the data loader stands before Lightning shards it.

    Args:
        trainer: Lightning's.
        loader: for training.

    Raises:
        UserError: a negative `max_steps` in the section.
    """
    if trainer.max_steps >= 0:
        return trainer.max_steps
    given = section.get("max_steps")
    if given is not None:
        if given < -1:
            raise UserError("a negative number of steps", f"{WHERE}.max_steps={given}", "Give a whole number from 0.")
        return None if given == -1 else given
    return None if loader is None else _steps_in_epochs(trainer, loader)


def _steps_in_epochs(trainer: Any, loader: Any) -> int:
    """Source: NeMo 3.0.0 `compute_max_steps` in `nemo.core.optim.lr_scheduler`."""
    round_batches = math.floor if loader.drop_last else math.ceil
    samples = math.ceil(len(loader.dataset) / max(1, trainer.num_devices * trainer.num_nodes))
    batches, limit = round_batches(samples / loader.batch_size), trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments: the section itself, or its `args` if it has them (NeMo then reads nothing else)."""
    if "args" not in section:
        return {key: value for key, value in section.items() if key not in NOT_THE_SCHEDULES}
    arguments = section["args"]
    if not isinstance(arguments, Mapping) or {"name", "_target_"} & arguments.keys():
        fix = "Write the settings directly below model.optim.sched."
        raise UserError("not supported: NeMo's classes of parameters", f"{WHERE}.args", fix)
    return dict(arguments)


def _stage(name: str, steps: int | None, ratio: float | None, max_steps: int | None) -> int:
    """The length of a stage, given in steps or as a part of the whole; 0 if it is not given."""
    if steps is not None and ratio is not None:
        raise UserError(f"{name}_steps and {name}_ratio are both given", WHERE, "Set one of them to null.")
    if ratio is None:
        return steps or 0
    assert max_steps is not None
    return int(ratio * max_steps)


def _check_peak(optimizer: Optimizer, min_lr: float, may_equal: bool = True) -> None:
    """NeMo stops at a rate below `min_lr`, at the first step or after the warm-up: here it is told before training."""
    lowest = min(group["lr"] for group in optimizer.param_groups)
    if lowest < min_lr or (lowest == min_lr and not may_equal):
        where = f"model.optim.lr={lowest}, {WHERE}.min_lr={min_lr}"
        raise UserError("a learning rate that is not above its minimum", where, "Lower min_lr.")


def _parameters(cls: type) -> list[str]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
