"""Modules as people write them: in place, shared, called twice or by keyword, views, checkpointed, on one side only."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nest_ssl.base.rng import read_states
from nest_ssl.record.loop import recording
from nest_ssl.recording.calls import Call
from nest_ssl.recording.evidence import Deviation, Place, Replay
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.replay import replay
from nest_ssl.replay.calls import Draft
from tests.record.loop import recorded_step
from tests.replay.conftest import blamed

WIDTH = 6


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Named:
    x: Tensor
    length: int


class Zoo(nn.Module):
    """Every kind once. `block` is a part that tests replace."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH))
        self.twice = nn.Linear(WIDTH, WIDTH)
        self.alias = self.twice
        self.keyword = Scaled()
        self.view = Turned()
        self.pair = Both()
        self.named = Counted()
        self.dropout = nn.Dropout(0.0)
        self.random = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.teacher = nn.Linear(WIDTH, WIDTH)
        self.block = Block()
        self.bias = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        x = self.twice(x) + self.alias(x * 0.5)
        x = self.keyword(scale=2.0, x=x)
        x = self.view(self.view(x))
        first, second = self.pair(x)
        x = self.named(first + second * self.bias).x
        y = self.dropout(x)
        x = self.norm(y + x * 0.25)
        with torch.no_grad():
            target = self.teacher(x)
        return self.random(self.block(x)) - target


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return torch.tanh(x) * scale


class Turned(nn.Module):
    """Its output is a view of its input, and is edited in place by whoever calls it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


class Both(nn.Module):
    def forward(self, x: Tensor) -> Pair:
        return Pair(x.sin(), x.cos())


class Counted(nn.Module):
    def forward(self, x: Tensor) -> Named:
        return Named(x * 1.5, len(x))


class Block(nn.Module):
    """A container with own code, a parameter of its own and a module with a hand-made gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.act = Cube()
        self.out = nn.Linear(WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.full((WIDTH,), 0.5))
        self.factor = 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.act(self.inner(x)))
        z: Tensor = x + y * self.gain * self.factor
        return z


class Cube(nn.Module):
    slope = 3.0

    def forward(self, x: Tensor) -> Tensor:
        return _Cube.apply(x, self.slope)  # type: ignore[no-untyped-call,no-any-return]


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ctx.slope * x**2, None


Build = Callable[[], nn.Module]


def train(folder: Path, build: Build) -> Recording:
    """Two recorded steps in a plain loop."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with recording(folder / "reference", model, steps=[0, 1], output_names=("y",)) as r:
        for _ in range(2):
            x = torch.randn(4, WIDTH)
            r.batch(x)
            recorded_step(r, model, optimizer, x)
    return open_recording(folder / "reference")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return train(tmp_path_factory.mktemp("zoo"), Zoo)


def fed(reference: Recording, build: Build = Zoo, *plants: Callable[[Any], None]) -> Replay:
    model = build()
    for plant in plants:
        plant(model)
    return replay(reference, model)


def test_every_kind_comes_out_with_the_same_bits(zoo: Recording) -> None:
    found = fed(zoo)
    assert {unit.outcome for unit in found.units} == {"same bits"}
    calls = zoo.step(0).calls()
    replayed = [(u.module, u.call) for u in found.units if u.phase == "forward" and u.step == 0]
    assert replayed == [(call.module, call.call) for call in calls] and len(calls) == 20
    sums = [u for u in found.units if u.phase == "backward" and u.call is None]
    assert {(u.module, u.compared) for u in sums} == {("twice", 2)}  # called twice: its gradients are sums
    gradients = {n for n, g in zoo.step(0).gradients().items() if g is not None}
    assert "teacher.weight" not in gradients and {"bias", "block.gain", "start.0.weight"} < gradients


def test_the_model_and_the_process_are_left_as_they_were(zoo: Recording) -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    model = Zoo().eval()
    seen: list[Tensor] = []
    model.bias.register_hook(seen.append)
    model.bias.grad = torch.full((WIDTH,), 7.0)
    before, states = {n: t.clone() for n, t in model.state_dict().items()}, read_states()
    pointers = {n: p.data_ptr() for n, p in model.named_parameters()}
    kept = {name: dict(part.__dict__) for name, part in model.named_modules()}
    replay(zoo, model)
    assert read_states() == states and torch.is_grad_enabled()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == pointers
    assert {name: dict(part.__dict__) for name, part in model.named_modules()} == kept
    assert torch.equal(model.bias.grad, torch.full((WIDTH,), 7.0)) and len(seen) == 2  # once a step: the sum
    assert all(p.grad is None for n, p in model.named_parameters() if n != "bias")


# --- faults, each in one place


def slope(model: Any) -> None:
    model.block.act.slope = 3.001


def factor(model: Any) -> None:
    model.block.factor = 0.50001


def detached(model: Any) -> None:
    inner = model.block.out.forward
    model.block.out.forward = lambda x: inner(x.detach())


def hook_on_a_parameter(model: Any) -> None:
    model.twice.weight.register_hook(lambda gradient: gradient * 1.0001)


def hook_on_a_module(model: Any) -> None:
    model.block.inner.register_full_backward_hook(lambda _, into, __: (into[0] * 1.0001,))


def hook_that_raises(model: Any) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no gradient here")

    model.block.inner.register_full_backward_hook(refuse)


def hook_on_an_output(model: Any) -> None:
    model.start[0].register_forward_hook(lambda _, __, output: output * 1.0001)


def edits_its_input(model: Any) -> None:
    forward = model.named.forward
    model.named.forward = lambda x: forward(x.mul_(1.0001))


def another_keyword(model: Any) -> None:
    model.keyword.forward = lambda x, scale: torch.tanh(x) * (scale + 1e-5)


def raises(model: Any) -> None:
    def forward(x: Tensor) -> Tensor:
        raise ValueError("no such shape")

    model.pair.forward = forward


def own_parameter_twice(model: Any) -> None:
    model.bias.register_hook(lambda gradient: gradient * 2)


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (slope, {"block.act": {"backward"}}),
        (factor, {"block": {"forward", "backward"}}),
        (detached, {"block.out": {"backward"}}),
        (hook_on_a_parameter, {"twice": {"backward"}}),
        (hook_on_a_module, {"block": {"backward"}}),  # or its inner: nothing says whose share of a sum it is
        (hook_that_raises, {"block.inner": {"backward"}}),
        (hook_on_an_output, {"start.0": {"forward", "backward"}}),
        (edits_its_input, {"named": {"forward"}}),
        (another_keyword, {"keyword": {"forward"}}),
        (raises, {"pair": {"forward"}}),
        (own_parameter_twice, {"": {"backward"}}),
    ],
)
def test_a_fault_is_named_and_no_other(
    zoo: Recording, plant: Callable[[Any], None], expected: dict[str, set[str]]
) -> None:
    assert blamed(fed(zoo, Zoo, plant)) == expected


def test_faults_in_a_module_and_in_its_container_are_both_named(zoo: Recording) -> None:
    found = blamed(fed(zoo, Zoo, factor, slope, hook_on_an_output))
    assert found.keys() == {"block", "block.act", "start.0"}


# --- the same function by other means


class Checkpointed(Block):
    """Its inside runs again in backward."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda z: self.out(self.act(self.inner(z))), x, use_reentrant=self.reentrant)
        z: Tensor = x + y * self.gain * self.factor
        return z


class Reentrant(Checkpointed):
    reentrant = True


class Fused(Block):
    """Two products without the modules that hold their weights."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(self.act(F.linear(x, self.inner.weight, self.inner.bias)), self.out.weight, self.out.bias)
        z: Tensor = x + y * self.gain * self.factor
        return z


class Wrapped(Block):
    """One module more around the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.more(self.act(self.inner(x))))
        z: Tensor = x + y * self.gain * self.factor
        return z


def with_block(kind: type[Block]) -> Build:
    def build() -> nn.Module:
        model = Zoo()
        model.block = kind()
        return model

    build.__name__ = kind.__name__
    return build


@pytest.mark.parametrize("kind", [Block, Checkpointed, Reentrant, Fused, Wrapped])
@pytest.mark.parametrize("reference", [Block, Checkpointed, Reentrant, Fused, Wrapped])
def test_the_same_function_by_other_modules(tmp_path: Path, reference: type[Block], kind: type[Block]) -> None:
    """Whichever side has a module more, calls one less, or runs a part again in backward."""
    found = fed(train(tmp_path, with_block(reference)), with_block(kind))
    assert blamed(found) == {}
    left = {(unit.module, unit.why) for unit in found.units if unit.outcome == "not replayed"}
    skipped = {"block.inner", "block.out"} if kind is Fused and reference is not Fused else set()
    missing = {"block.more"} if reference is Wrapped and kind is not Wrapped else set()
    assert {module for module, _ in left} == skipped | missing
    assert found.only_reference == sorted(missing)
    assert found.only_candidate == (["block.more"] if kind is Wrapped and reference is not Wrapped else [])


@pytest.mark.parametrize("kind", [Checkpointed, Reentrant, Fused, Wrapped])
def test_a_fault_beside_other_means_is_named(zoo: Recording, kind: type[Block]) -> None:
    assert blamed(fed(zoo, with_block(kind), factor)) == {"block": {"forward", "backward"}}
    assert blamed(fed(zoo, with_block(kind), hook_on_an_output)) == {"start.0": {"forward", "backward"}}


def test_another_shape_and_a_module_that_is_gone(zoo: Recording) -> None:
    def drop(model: Any) -> None:
        del model.block.act
        model.block.act = None
        model.block.forward = lambda x: x

    found = fed(zoo, Zoo, drop)
    assert found.only_reference == ["block.act"]
    assert {(u.module, u.why) for u in found.units if u.outcome == "not replayed" and "no such" in u.why} == {
        ("block.act", "the candidate has no such module")
    }
    assert blamed(found) == {"block": {"forward", "backward"}}


def test_same_bits_of_nothing_are_not_said() -> None:
    """A unit of which nothing was compared was not replayed, unless the call around it hands on what it brings."""
    call, inner = (Call(index, name, 0, True, [], [], {}, index) for index, name in ((0, "a"), (1, "a.dropout")))
    around, alone = Draft(0, "backward", call), Draft(0, "backward", inner)
    assert (alone.unit().outcome, alone.unit().why) == ("not replayed", "nothing of it was compared")
    alone.judged_with = around
    around.add(2, [])
    assert (alone.unit().outcome, alone.unit().judged_with) == ("same bits", "a#0")
    around.add(1, [Deviation(place=Place(kind="output"), why="other")])
    assert (alone.unit().outcome, alone.unit().judged_with) == ("not replayed", "a#0")


class Exchanged(nn.Module):
    """Two children in a row; `exchanged` calls the second first."""

    def __init__(self, exchanged: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)
        self.exchanged = exchanged

    def forward(self, x: Tensor) -> Tensor:
        x = self.three(x)
        found: Tensor = self.one(self.two(x)) if self.exchanged else self.two(self.one(x))
        return found


def test_own_code_that_calls_in_another_order_is_blamed_and_not_what_it_calls(tmp_path: Path) -> None:
    """Each child brings the gradient that it should, to the wrong neighbour."""
    found = fed(train(tmp_path, Exchanged), lambda: Exchanged(exchanged=True))
    assert blamed(found) == {"": {"forward", "backward"}}
