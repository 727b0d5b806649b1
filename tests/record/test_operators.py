"""The operators of a step: all that run and no others, each with its owner and line, and no bit of training changed."""

from __future__ import annotations

import inspect
import random
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _len_torch_dispatch_stack
from torch.utils.checkpoint import checkpoint

from nest_ssl.base.rng import rng_digests
from nest_ssl.record.loop import recording
from nest_ssl.recording.evidence import Operator, StepOperators
from nest_ssl.recording.reader import open_recording


class Doubled(torch.autograd.Function):
    """With a backward in Python, a wrong one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2.5


class Net(nn.Module):
    """One activation in two places, a part run again in backward, an input edited in place, three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.activation = nn.SiLU()
        self.norm = nn.BatchNorm1d(4)
        self.again = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x += 0.01 * torch.randn_like(x) * random.random() * float(np.random.uniform())
        x = self.activation(self.first(x))
        x = self.norm(self.activation(self.second(x)))
        x = checkpoint(self.again, x, use_reentrant=False)
        return Doubled.apply(self.dropout(x))


class Names(TorchDispatchMode):
    """Every operator by name: what runs where nothing is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "profiler":
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Unrecorded:
    """What a plain loop calls, where nothing is recorded."""

    def batch(self, *_: object) -> None: ...

    loss = backward_done = step_done = batch


def train(r: Any, model: nn.Module, around: AbstractContextManager[Any] | None = None) -> nn.Module:
    """Three steps of a model from seed 1, each within `around`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(3):
        batch = torch.arange(8.0).reshape(2, 4) + step
        r.batch(batch)
        with around or nullcontext():
            loss = model(batch).square().mean()
            r.loss(loss)
            optimizer.zero_grad()
            loss.backward()
            r.backward_done()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        r.step_done(optimizer)
    return model


def seeded(kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    return kind()


def record(out: Path, model: nn.Module, operators: bool | list[str] = True) -> nn.Module:
    with recording(out, model, operators=operators, overwrite=True) as r:
        return train(r, model)


def operators(out: Path, step: int = 1) -> StepOperators:
    found = open_recording(out).step(step).operators()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> StepOperators:
    out = tmp_path_factory.mktemp("operators") / "run"
    record(out, seeded())
    return operators(out)


def of(side: StepOperators, phase: str, module: str | None = ...) -> list[Operator]:  # type: ignore[assignment]
    return [o for o in side.operators if o.phase == phase and module in (o.module, ...)]


def line_of(text: str) -> str:
    """`record/test_operators.py:N` of the only line here that has `text`."""
    lines = inspect.getsource(inspect.getmodule(Net)).splitlines()  # type: ignore[arg-type]
    (number,) = (n for n, line in enumerate(lines, start=1) if text in line and "line_of(" not in line)
    return f"test_operators.py:{number}"


def test_watching_changes_no_bit_of_training(tmp_path: Path) -> None:
    bare, states = train(Unrecorded(), seeded()).state_dict(), rng_digests()
    watched = record(tmp_path / "run", seeded()).state_dict()
    assert all(torch.equal(bare[name], watched[name]) for name in bare)
    assert rng_digests() == states


def test_the_files_of_the_recording_are_those_without(tmp_path: Path) -> None:
    for name, on in (("with", True), ("without", False)):
        record(tmp_path / name, seeded(), on)
    files = [open_recording(tmp_path / name).index.files for name in ("with", "without")]
    assert {name for name in files[0] if name not in files[1]} == {f"step_{i}/operators.json" for i in range(3)}
    assert [name for name in files[1] if files[0][name] != files[1][name]] == []


def test_all_that_run_and_nothing_of_the_recorders_own(tmp_path: Path) -> None:
    """In number, name and order what a bare loop runs."""
    names = Names()
    train(Unrecorded(), seeded(), names)
    record(tmp_path / "run", seeded())
    found = [o.name for step in range(3) for o in operators(tmp_path / "run", step).operators]
    assert [name for name in found if name.startswith("aten.")] == names.names and len(names.names) > 300


def test_arguments_tensors_and_outputs(traced: StepOperators) -> None:
    norm = next(o for o in of(traced, "forward", "norm") if "batch_norm" in o.name)
    assert norm.tensors == ["[2, 4] float32", *["[4] float32"] * 4]
    assert norm.arguments == {"training": True, "momentum": 0.1, "eps": 1e-05}
    assert norm.outputs[0] == "[2, 4] float32" and len(norm.outputs) == 3


def test_a_shared_module_has_its_calls_apart(traced: StepOperators) -> None:
    assert [(o.name, o.call) for o in of(traced, "forward", "activation")] == [("aten.silu.default", i) for i in (0, 1)]
    backward = [(o.name, o.call) for o in of(traced, "backward", "activation")]
    assert backward == [("aten.silu_backward.default", i) for i in (1, 0)]
    assert traced.enclosing["activation#1"] == "#0" and traced.enclosing["again.0#0"] == "again#0"


def test_what_is_run_again_in_backward_is_the_modules_own(traced: StepOperators) -> None:
    names = [o.name for o in of(traced, "backward", "again.1") if "detach" not in o.name]
    assert names == ["aten.tanh.default", "aten.tanh_backward.default"]
    assert {o.call for o in of(traced, "backward", "again.1")} == {0}


def test_source_lines_are_those_outside_of_torch(traced: StepOperators) -> None:
    (silu, _) = of(traced, "forward", "activation")
    assert silu.source.endswith(line_of("x = self.activation(self." + "first(x))"))
    assert traced.lines[silu.source] == "x = self.activation(self.first" + "(x))"
    (_, backward) = of(traced, "backward", "activation")
    assert backward.source == silu.source, "of the forward that made the node"
    own = [o for o in of(traced, "backward", "") if o.arguments.get("other") == 2.5]
    assert [o.source.rpartition("/")[2] for o in own] == [line_of("return gradient * 2.5")]
    without = {(o.phase, o.call) for o in traced.operators if o.name.startswith("aten.") and not o.source}
    assert without == {("backward", None)}, "the sums of parameters' gradients, by autograd itself"


def test_the_optimizers_are_by_the_module_whose_parameter_they_work_on(traced: StepOperators) -> None:
    updates = [(o.module, o.arguments["value"]) for o in of(traced, "optimizer") if "addcdiv" in o.name]
    assert [module for module, _ in updates] == [
        "first",
        "first",
        "second",
        "second",
        "norm",
        "norm",
        "again.0",
        "again.0",
    ]
    assert {value < 0 for _, value in updates} == {True}


def test_generators_that_are_not_torchs(traced: StepOperators) -> None:
    draws = [(o.name, o.phase, o.module, o.arguments) for o in traced.operators if o.name.endswith(".draw")]
    assert sorted(draws) == [("numpy.draw", "forward", "", {"words": 2}), ("python.draw", "forward", "", {"words": 2})]


def test_only_modules_that_a_pattern_names_and_what_they_call(tmp_path: Path) -> None:
    record(tmp_path / "run", seeded(), ["aga*", "norm"])
    found = operators(tmp_path / "run")
    assert {o.module for o in found.operators} == {"again", "again.0", "again.1", "norm"} - {"again"}
    assert {o.phase for o in found.operators} == {"forward", "backward", "optimizer"}
    record(tmp_path / "whole", seeded())
    whole = [o for o in operators(tmp_path / "whole").operators if o.module in ("norm", "again.0", "again.1")]
    assert found.operators == whole


class Edited(Net):
    """A gradient edited by a hook, and an operator that fails in the second step."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        y.register_hook(lambda gradient: gradient * 1.0001)
        self.calls += 1
        return y @ torch.ones(3, 3) if self.calls == 2 else y


def test_a_hook_that_edits_a_gradient_is_seen_with_its_line_and_an_error_leaves_no_mode(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        record(tmp_path / "run", seeded(Edited))
    assert _len_torch_dispatch_stack() == 0 and not (tmp_path / "run").exists()
    model = seeded(Edited)
    model.calls = 5
    record(tmp_path / "run", model)
    (edit,) = (o for o in operators(tmp_path / "run").operators if o.arguments.get("other") == 1.0001)
    assert (edit.phase, edit.module) == ("backward", "")
    assert edit.source.endswith(line_of("gradient * 1.0001)"))


class Loss(nn.Sequential):
    """A root whose forward is torch's own."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 1))


def test_a_root_of_torchs_own(tmp_path: Path) -> None:
    record(tmp_path / "run", seeded(Loss))
    found = operators(tmp_path / "run")
    assert [o.name for o in of(found, "forward", "0")] == ["aten.t.default", "aten.addmm.default"]
    assert of(found, "forward", "0")[0].source.endswith(line_of("loss = model(batch).square()"))


def test_functions_that_are_no_part_of_training_are_left_out(tmp_path: Path) -> None:
    def log(loss: Tensor) -> Tensor:
        return loss.detach().cosh()

    model = seeded()
    for unwatched in ((), (log.__code__,)):
        with recording(tmp_path / "run", model, operators=True, overwrite=True) as r:
            r.unwatched = unwatched
            r.batch(None)
            loss = model(torch.ones(2, 4)).mean()
            log(loss)
            r.loss(loss)
            loss.backward()
            r.backward_done()
            r.step_done()
        assert ("aten.cosh.default" in [o.name for o in operators(tmp_path / "run", 0).operators]) != bool(unwatched)
