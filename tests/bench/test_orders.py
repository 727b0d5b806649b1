"""What a worker does when asked: faults are planted in a step, and found; without them nothing is."""

from __future__ import annotations

import os
import time
import warnings
from threading import Thread
from typing import Any

import pytest
import torch
from torch import nn

from nest_ssl.bench import orders
from nest_ssl.bench.orders import NOT_REPEATABLE, SYNCHRONISES, Moments
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.recording.writer import THREADS

CPU = torch.device("cpu")


class Model(nn.Module):
    """Three layers; `fault` may be planted in a forward."""

    fault = ""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        self.times = 0

    def training_step(self, batch: AudioNoiseBatch, batch_idx: int) -> Any:
        self.times += 1
        batch.audio.add_(1)  # as dither does, in place
        hidden = self.norm(self.first(batch.audio) + torch.rand(4))
        if self.fault == "waits":
            warnings.warn(SYNCHRONISES, stacklevel=1)
        elif self.fault == "no kernel":
            warnings.warn(f"sum_cuda {NOT_REPEATABLE}, but you set", stacklevel=1)
        elif self.fault == "output":
            hidden = hidden + self.times
        loss = self.last(hidden).mean()
        if self.fault == "gradient":
            self.last.weight.register_hook(lambda gradient, times=self.times: gradient + 1e-9 * times)
        return {"loss": loss}


@pytest.fixture
def batch() -> AudioNoiseBatch:
    values = torch.arange(12.0).reshape(3, 4)
    lengths = torch.full((3,), 4)
    return AudioNoiseBatch(values, lengths, values, lengths, values, lengths)


def test_a_step_that_repeats_is_left_alone(batch: AudioNoiseBatch) -> None:
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = orders.repeats(model, model.training_step, batch, 0, {"times": 3})
    assert found["parameter_gradients"] == [6, 0, []] and found["outputs"] == [3, 0, []] and found["largest"] == 0
    assert found["output_gradients"] == [3, 0, []]
    assert batch.audio[0, 0] == 0 and model.times == 3  # dither does not pile up
    assert torch.equal(model.first.weight, before["first.weight"]) and model.first.weight.grad is None


@pytest.mark.parametrize(
    ("fault", "outputs", "gradients"),
    [("output", ["last"], []), ("gradient", [], ["last.weight"])],
)
def test_what_varies_is_named(batch: AudioNoiseBatch, fault: str, outputs: list[str], gradients: list[str]) -> None:
    model = Model()
    model.fault = fault
    found = orders.repeats(model, model.training_step, batch, 0, {"times": 3})
    assert found["outputs"][2] == outputs
    assert found["parameter_gradients"][2] == (gradients or ["last.weight"])
    assert found["largest"] > 0


def test_a_wait_is_counted_where_it_is(batch: AudioNoiseBatch) -> None:
    model = Model()
    clean = orders.synchronisations(model, model.training_step, batch, 0, {})
    assert clean == {"forward": [], "backward": [], "not_repeatable": []}
    model.fault = "waits"
    found = orders.synchronisations(model, model.training_step, batch, 0, {})
    ((place, count),) = found["forward"]
    line = Model.training_step.__code__.co_firstlineno + 5
    assert place.endswith(f"bench/test_orders.py:{line}") and count == 1 and found["backward"] == []
    model.fault = "no kernel"
    assert orders.synchronisations(model, model.training_step, batch, 0, {})["not_repeatable"] == ["sum_cuda"]


def test_what_a_recorder_s_threads_wait_for_is_no_wait_of_training() -> None:
    with orders.warnings_by_place(set()) as places:
        for name in (f"{THREADS}write_0", "autograd"):
            thread = Thread(target=lambda: warnings.warn(SYNCHRONISES, stacklevel=1), name=name)
            thread.start()
            thread.join()
    assert sum(places.values()) == 1


def test_the_arithmetic_of_a_step(batch: AudioNoiseBatch) -> None:
    """Products of both layers forward, the same again for their weights, and for the input of the last."""
    model = Model()
    forward = 2 * (3 * 4 * 4 + 3 * 4)
    found = orders.arithmetic(model, model.training_step, batch, 0, {})
    assert found == {"flops": forward + forward + 2 * 3 * 4}


def compute(seconds: float) -> None:
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def test_moments_leave_out_the_warm_up() -> None:
    moments = Moments(CPU)
    moments.begin(warm=2)
    for step in range(5):
        moments.mark("start")
        compute(0.05 if step < 2 else 0.002)
        time.sleep(0.05)  # what a process waits is no work of it
        moments.mark("forward")
        moments.mark("backward")
        moments.mark("end")
    found = moments.end()
    assert found["steps"] == 3 and (found["peak_bytes"] or 1) > 0
    assert 2 <= found["forward_ms"] < 40 and found["forward_ms"] <= found["step_ms"] < 40
    assert found["backward_ms"] < 2 and found["optimizer_ms"] < 2
    assert 0 < found["user_ms"] <= found["step_ms"]


def test_what_the_kernel_takes_is_left_out() -> None:
    moments = Moments(CPU)
    moments.begin(warm=0)
    for _ in range(3):
        moments.mark("start")
        before = os.times().system
        while os.times().system < before + 0.05:
            os.listdir("/proc")
        for name in ("forward", "backward", "end"):
            moments.mark(name)
    found = moments.end()
    assert found["step_ms"] > 50 and 0 <= found["user_ms"] < found["step_ms"] - 30


@pytest.mark.parametrize(
    ("flags", "deterministic", "filled"),
    [("deterministic", True, True), ("fast", True, False), ("free", False, False)],
)
def test_flags_are_what_their_names_say(
    flags: str, deterministic: bool, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # else the fast mode has nothing to do with TF32
    try:
        orders.set_flags(flags, tf32=True)
        assert torch.are_deterministic_algorithms_enabled() is deterministic
        assert torch.backends.cudnn.deterministic is deterministic
        assert torch.utils.deterministic.fill_uninitialized_memory is filled
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
        orders.set_flags(flags, tf32=False)
        kept = flags == "fast"
        assert torch.backends.cuda.matmul.allow_tf32 is kept and torch.backends.cudnn.allow_tf32 is kept
    finally:
        orders.set_flags("deterministic", tf32=False)
        torch.use_deterministic_algorithms(False)
