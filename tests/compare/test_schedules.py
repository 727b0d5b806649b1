"""Learning rates without training: planted faults of the port's own schedules, and rewrites with the same rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nest_ssl.base.errors import UserError
from nest_ssl.compare.schedules import ROUNDING, RateDifference, bind_rates, compare_rates
from nest_ssl.record.loop import recording
from nest_ssl.record.observers.learning_rates import Stepped, learning_rates
from nest_ssl.recording.evidence import LearningRates, Rates, Schedule, read_evidence, write_evidence
from nest_ssl.recording.reader import open_recording
from nest_ssl.train.schedules import SCHEDULES, CosineAnnealing, NoamAnnealing, WarmupPolicy, build_schedule

STEPS = 10_000
NOAM = {"name": "NoamAnnealing", "d_model": 512, "warmup_steps": 2_500, "min_lr": 1e-6}
COSINE = {"name": "CosineAnnealing", "warmup_ratio": 0.2, "min_lr": 1e-4}


def rates(section: dict[str, Any], lr: float = 5.0, steps: int = STEPS, every: int | None = 1) -> LearningRates:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr)
    schedule = build_schedule(optimizer, section, STEPS)
    found = learning_rates(optimizer, [Stepped(schedule, every)] if schedule else [], steps)
    return LearningRates(**dict(found))


def compared(*sides: LearningRates) -> RateDifference:
    (difference,) = compare_rates(*sides)
    return difference


@pytest.fixture(scope="module")
def noam() -> LearningRates:
    return rates(NOAM)


@pytest.fixture(scope="module")
def cosine() -> LearningRates:
    return rates(COSINE, lr=0.01)


def test_the_same_is_no_difference(noam: LearningRates) -> None:
    assert compare_rates(noam, noam) == []
    assert len(noam.rates) == STEPS and noam.rates[0] == noam.rates[1], "steps 0 and 1 share a rate"


def test_a_second_group_of_the_same_rates_is_no_other_schedule(noam: LearningRates) -> None:
    grouped = noam.model_copy(update={"rates": [[rate[0]] * 2 for rate in noam.rates], "longer": None})
    assert compare_rates(noam, grouped) == [] == compare_rates(grouped, noam)
    slower = noam.model_copy(update={"rates": [[rate[0], rate[0] / 2] for rate in noam.rates], "longer": None})
    assert compared(noam, slower).first == -1


class Rewritten(NoamAnnealing):
    """Another class, and the same rates."""

    def rate(self, step: int, peak: Any) -> Any:
        whole = max(1, step)
        falling = whole ** (-0.5)
        rising = whole * self.warmup_steps ** (-1.5)
        scaled = peak * (self._normalize * (falling if falling < rising else rising))
        return scaled if whole <= self.warmup_steps or scaled > self.min_lr else self.min_lr


class Reordered(NoamAnnealing):
    """The same products in another order."""

    def rate(self, step: int, peak: Any) -> Any:
        step = max(1, step)
        return peak * self._normalize * min(step**-0.5, step * self.warmup_steps**-1.5)


class OneAhead(NoamAnnealing):
    def rate(self, step: int, peak: Any) -> Any:
        return super().rate(step + 1, peak)


class OneBehind(CosineAnnealing):
    def rate(self, step: int, peak: Any) -> Any:
        return super().rate(max(0, step - 1), peak)


class OtherDecay(NoamAnnealing):
    """After the warm-up only: thousands of steps behind what any recording holds."""

    def rate(self, step: int, peak: Any) -> Any:
        rate = super().rate(step, peak)
        return rate * (self.warmup_steps / step) ** 0.01 if step > self.warmup_steps else rate


def with_class(cls: type[WarmupPolicy], section: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    monkeypatch.setitem(SCHEDULES, section["name"], cls)
    return rates(section, **more)


def test_another_class_with_the_same_rates_is_no_difference(
    noam: LearningRates, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = with_class(Rewritten, NOAM, monkeypatch)
    assert compare_rates(noam, candidate) == [] and noam.scheduler != candidate.scheduler


def test_another_order_of_the_products_is_rounding(noam: LearningRates, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(noam, with_class(Reordered, NOAM, monkeypatch))
    assert 0 < found.largest <= ROUNDING and found.shift is None


def test_off_by_one_step(noam: LearningRates, cosine: LearningRates, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = compared(noam, with_class(OneAhead, NOAM, monkeypatch))
    assert (ahead.shift, ahead.first, ahead.factor) == (1, 1, None)
    behind = compared(cosine, with_class(OneBehind, COSINE, monkeypatch, lr=0.01))
    assert (behind.shift, behind.first) == (-1, 1)
    assert behind.schedulers == ("nest_ssl.train.schedules.CosineAnnealing", f"{__name__}.OneBehind")


def test_another_decay_far_behind_the_recorded_steps(noam: LearningRates, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compared(noam, with_class(OtherDecay, NOAM, monkeypatch))
    assert (found.first, found.differing, found.worst) == (2_501, STEPS - 2_501, STEPS - 1)
    assert found.largest == pytest.approx(1 - 4**-0.01, rel=1e-3)


def test_another_warm_up_ratio(cosine: LearningRates) -> None:
    found = compared(cosine, rates({**COSINE, "warmup_ratio": 0.2001}, lr=0.01))
    assert found.first == 0 and found.shift is None and found.factor is None


def test_another_minimum_is_seen_where_it_holds() -> None:
    section = {"name": "WarmupPolicy", "warmup_steps": 10, "min_lr": 0.0}
    sides = [rates({**section, "min_lr": value, "max_steps": 1}, lr=0.01) for value in (0.0, 1e-9)]
    assert compare_rates(*sides) == [], "never reached within the plan"
    high = compared(rates(NOAM), rates({**NOAM, "min_lr": 2.5e-3}))
    assert high.first > 2_500 and high.candidate == 2.5e-3 and high.worst == STEPS - 1


def test_a_base_rate_times_1_00001_is_one_factor(noam: LearningRates) -> None:
    found = compared(noam, rates(NOAM, lr=5.0 * 1.00001))
    assert found.factor == pytest.approx(1.00001, abs=1e-12) and found.differing == STEPS
    assert found.largest == pytest.approx(1e-5, rel=1e-6) and (found.first, found.group) == (0, 0)


def test_a_schedule_that_is_not_stepped_or_once_an_epoch(noam: LearningRates) -> None:
    assert compared(noam, rates(NOAM, every=None)).first == 2
    assert compared(noam, rates(NOAM, every=6)).first == 2
    constant = rates({}, lr=0.1, steps=5)
    assert (constant.scheduler, constant.rates) == ("", [[0.1]] * 5)


def test_numbers_that_are_none(noam: LearningRates) -> None:
    nan = LearningRates(scheduler="a", steps=[0, 1], rates=[[float("nan")], [0.0]])
    assert compare_rates(nan, nan) == []
    assert compared(LearningRates(scheduler="a", steps=[0, 1], rates=[[1.0], [0.0]]), nan).largest == float("inf")
    groups = LearningRates(scheduler="a", steps=[0], rates=[[1.0, 2.0]])
    assert compared(LearningRates(scheduler="a", steps=[0], rates=[[1.0]]), groups).first == -1


@pytest.mark.parametrize("change", [{"steps": [0]}, {"rates": [[1.0], []]}, {"steps": [-1, 0]}])
def test_a_file_whose_parts_do_not_fit_is_damaged(change: dict[str, Any], tmp_path: Path) -> None:
    good = {"reference": "0" * 64, "side": "reference", "scheduler": "a", "steps": [0, 1], "rates": [[1.0], [2.0]]}
    write_evidence(tmp_path / "good.json", Schedule(**good))
    assert read_evidence(tmp_path / "good.json", Schedule).rates == [[1.0], [2.0]]
    write_evidence(tmp_path / "bad.json", Schedule.model_construct(**{**good, **change}))
    with pytest.raises(UserError, match="damaged evidence"):
        read_evidence(tmp_path / "bad.json", Schedule)


def test_a_plain_loop_records_them_and_they_become_evidence(tmp_path: Path) -> None:
    def record(name: str, longer: Callable[[], Rates | None]) -> Any:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with recording(tmp_path / name, model) as r:
            r.batch(torch.ones(1))
            r.step_done(optimizer)
            r.learning_rates(rates(NOAM, steps=10), longer())
        return open_recording(tmp_path / name)

    one, other = record("one", lambda: rates(NOAM, steps=20)), record("other", lambda: None)
    sides = [bind_rates(each, side, one, other) for each, side in ((one, "reference"), (other, "candidate"))]
    assert compare_rates(*sides) == [] and sides[0].longer is not None and sides[1].longer is None
    third = record("third", lambda: rates(NOAM, lr=4.0, steps=20))
    assert [d.longer for d in compare_rates(sides[0], bind_rates(third, "candidate", one, third))] == [True]
