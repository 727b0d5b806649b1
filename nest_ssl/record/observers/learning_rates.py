"""Learning rates of an optimizer's schedule over many steps, without training."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from nest_ssl.recording.evidence import Rates


@dataclass(frozen=True)
class Stepped:
    """A schedule, and when it is stepped.

    Args:
        scheduler: torch's, or anything with a `step` that sets the optimizer's rates.
        every: after how many optimizer steps; None: never, where it follows a metric.
    """

    scheduler: Any
    every: int | None = 1


def learning_rates(optimizer: Optimizer, schedules: Sequence[Stepped], steps: int) -> Rates:
    """The rate of every parameter group in each of `steps` optimizer steps.

    The schedules are stepped, so neither they nor the optimizer can be trained with afterwards.
    """
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer step came before
        for step in range(1, steps + 1):
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
            for schedule in schedules:
                if schedule.every is not None and step % schedule.every == 0:
                    schedule.scheduler.step()
    kinds = [f"{type(each.scheduler).__module__}.{type(each.scheduler).__qualname__}" for each in schedules]
    return Rates(scheduler=", ".join(kinds), steps=list(range(steps)), rates=rates)
