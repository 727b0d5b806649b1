"""The recorder's traps: shared modules, in-place edits, repeated and keyword calls, views, outputs that nobody uses."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nest_ssl.base.nested import tensors
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.draws import DrawObserver
from nest_ssl.recording.calls import Call


class InPlaceNet(nn.Module):
    """A convolution, an in-place ReLU used twice, a shared activation, keyword arguments, an edited view."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv1d(3, 3, 1)
        self.scale = Scale()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = self.relu(self.first(x))
        x = self.relu(self.second(x))
        x = self.scale(x, factor=2.0)
        return {"y": self.scale(value=x, factor=3.0), "shift": shift}


class Scale(nn.Module):
    def forward(self, value: torch.Tensor, factor: float) -> torch.Tensor:
        out = value * factor
        out.transpose(1, 2)[:, 0] = 0.0  # an in-place edit through a view
        return out


def run(record: bool) -> tuple[list[Call], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = InPlaceNet()
    x = torch.randn(2, 2, 5)
    observer = CallObserver(net).attach() if record else None
    net.forward(x, shift=x)["y"].square().sum().backward()
    calls = observer.detach() if observer else []
    return calls, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def call_of(calls: list[Call], module: str, number: int = 0) -> Call:
    return next(call for call in calls if call.module == module and call.call == number)


@pytest.fixture
def calls() -> list[Call]:
    return run(record=True)[0]


def test_every_call_of_a_shared_module_is_kept_in_order(calls: list[Call]) -> None:
    assert [call.name for call in calls] == ["#0", "first#0", "relu#0", "second#0", "relu#1", "scale#0", "scale#1"]
    assert [call.index for call in calls] == list(range(7))


def test_starts_and_ends_are_numbered_together(calls: list[Call]) -> None:
    assert [(call.start, call.end) for call in calls] == [
        (0, 13), (1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12),
    ]  # fmt: skip


def test_outputs_are_copied_before_the_in_place_edit(calls: list[Call]) -> None:
    before, after = call_of(calls, "first").output, call_of(calls, "relu").output
    assert (before < 0).any() and torch.equal(before.clamp(min=0), after)
    assert torch.equal(call_of(calls, "relu").args[0], before)


def test_positional_and_keyword_arguments_are_named(calls: list[Call]) -> None:
    assert call_of(calls, "scale", 0).arg_names == ["value"]
    assert call_of(calls, "scale", 0).kwargs == {"factor": 2.0}
    assert set(call_of(calls, "scale", 1).kwargs) == {"value", "factor"}
    assert call_of(calls, "").arg_names == ["x"] and list(call_of(calls, "").kwargs) == ["shift"]


def test_each_input_names_the_call_that_returned_it(calls: list[Call]) -> None:
    index = {call.name: call.index for call in calls}
    assert [call.producers for call in calls] == [
        {},
        {},  # the batch's: no call returned it
        {"input": (index["first#0"], "")},
        {"input": (index["relu#0"], "")},
        {"input": (index["second#0"], "")},
        {"value": (index["relu#1"], "")},
        {"value": (index["scale#0"], "")},
    ]


def test_what_was_edited_since_no_call_returned() -> None:
    class Edits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            y.data.mul_(2)  # does not count in the tensor's version
            z = self.second(y)
            return self.third(z)

    observer = CallObserver(net := Edits()).attach()
    net.forward(torch.ones(1, 2))
    calls = observer.detach()
    first, second, third = (call_of(calls, name) for name in ("first", "second", "third"))
    assert torch.equal(second.args[0], 2 * first.output), "what went in, not what came out before the edit"
    assert second.producers == {}
    assert third.producers == {"input": (second.index, "")}


def test_a_container_is_the_last_to_return_what_its_child_made() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    observer = CallObserver(net).attach()
    net.forward(torch.ones(1, 2))
    calls = observer.detach()
    assert call_of(calls, "1").producers == {"input": (call_of(calls, "0").index, "")}


def test_output_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    observer = CallObserver(net).attach()
    net.forward(x).sum().backward()
    calls = observer.detach()
    hidden = net[0](x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(net[2](net[1](hidden)).sum(), hidden)
    assert torch.equal(call_of(calls, "0").output_grads[""], expected)
    assert [call_of(calls, name).grad_event for name in ("", "2", "1", "0")] == [1, 0, 2, 3], "backward order"


def test_watching_changes_no_gradient() -> None:
    watched, bare = run(record=True)[1], run(record=False)[1]
    assert watched.keys() == bare.keys()
    assert all(torch.equal(watched[n], bare[n]) for n in bare)


def test_detach_leaves_no_hook_and_no_wrapper() -> None:
    net = InPlaceNet()
    observer = CallObserver(net).attach()
    kept = net.forward(torch.ones(1, 2, 5))["y"]
    observer.detach()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert "forward" not in vars(net)
    kept.sum().backward()  # a loop may keep a graph
    assert all(call.output_grads == {} for call in observer.calls)


def test_a_forward_of_the_models_own_instance_comes_back() -> None:
    net = InPlaceNet()
    net.forward = forward = lambda x: {"y": x}  # type: ignore[method-assign]
    observer = CallObserver(net).attach()
    net.forward(torch.ones(1))
    assert [call.module for call in observer.detach()] == [""]
    assert net.forward is forward


def test_the_same_tensor_is_copied_once_and_an_edited_one_again(calls: list[Call]) -> None:
    assert call_of(calls, "scale").args[0] is call_of(calls, "relu", 1).output
    assert call_of(calls, "first").output is not call_of(calls, "relu").output


def test_calls_hold_only_tensors_and_builtins(calls: list[Call]) -> None:
    for call in calls:
        for _, tensor in tensors(call.output):
            assert not tensor.requires_grad and tensor.device.type == "cpu"


def test_a_hook_registered_behind_ours_is_seen() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    observer = CallObserver(net).attach()
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    net[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    result = net.forward(torch.ones(1, 2))
    calls = observer.detach()
    assert torch.equal(call_of(calls, "1").args[0], 2 * call_of(calls, "0").output)
    assert torch.equal(call_of(calls, "0").output, net[0](torch.ones(1, 2))), "with what the hook added"
    assert torch.equal(call_of(calls, "1").output, result)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.reshape(7))


class Catching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.failing, self.other = Failing(), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with contextlib.suppress(RuntimeError):
            self.failing(x)
        return self.other(x)


def test_a_call_that_raised_has_an_end_and_no_output() -> None:
    observer = CallObserver(net := Catching()).attach()
    try:
        raise ValueError("an error that is being handled already is not the call's")
    except ValueError:
        net.forward(torch.ones(1, 2))
    calls = observer.detach()
    assert [(call.name, call.start, call.end, call.raised) for call in calls] == [
        ("#0", 0, 5, False), ("failing#0", 1, 2, True), ("other#0", 3, 4, False),
    ]  # fmt: skip
    assert calls[1].output is None and calls[1].output_grads == {}


def test_a_root_that_raised() -> None:
    observer = CallObserver(net := Failing()).attach()
    with pytest.raises(RuntimeError):
        net.forward(torch.ones(1, 2))
    (call,) = observer.detach()
    assert (call.raised, call.end) == (True, 1)


def test_a_hook_that_raises_before_ours_starts_no_call() -> None:
    def refuse(module: nn.Module, args: object) -> None:
        raise RuntimeError("no")

    net = Catching()
    net.failing.register_forward_pre_hook(refuse)
    observer = CallObserver(net).attach()
    net.forward(torch.ones(1, 2))
    assert [(call.name, call.raised) for call in observer.detach()] == [("#0", False), ("other#0", False)]


class Checkpointed(nn.Module):
    """Two layers with dropout, run again in backward if `again` says how."""

    def __init__(self, again: str) -> None:
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 2)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) if self.again == "never" else checkpoint(layer, x, use_reentrant=self.again == "reentrant")
        return x


@pytest.mark.parametrize("again", ["reentrant", "not reentrant"])
def test_activation_checkpointing_is_recorded_apart(again: str) -> None:
    """Layers run again in backward, as far as backward needs them: not reentrant ones are cut off by an exception."""
    recorded = {}
    for kind in ("never", again):
        torch.manual_seed(0)
        net, draws = Checkpointed(kind), DrawObserver("training_step")
        observer = CallObserver(net, draws).attach()
        loss = net.forward(torch.ones(3, 2, requires_grad=True)).square().sum()
        draws.enter("backward")
        observer.loss_reached()
        loss.backward()
        draws.enter("optimizer_step")
        recorded[kind] = observer.detach(), observer.later, draws.entries
    (plain, none, plain_draws), (calls, later, drawn) = recorded["never"], recorded[again]
    assert [(call.name, call.start, call.end) for call in calls] == [(c.name, c.start, c.end) for c in plain]
    assert all(torch.equal(a.output, b.output) for a, b in zip(calls, plain, strict=True))
    assert drawn == plain_draws, "the generators are put back and return"
    assert none == []
    assert [call.module for call in later][:2] == ["layers.1", "layers.1.0"]
    assert {call.module for call in later} >= {"layers.0", "layers.0.0"}
    assert all(call.end > call.start for call in later)
    assert any(call.raised for call in later) == (again == "not reentrant")


def test_an_observer_that_never_watched_may_be_ended() -> None:
    assert CallObserver(nn.Linear(2, 2)).detach() == []


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_observers_of_one_model_may_end_in_any_order(first_out: int) -> None:
    """Nothing of either is left on the model, and the one that goes on sees every call once."""
    model = nn.Sequential(nn.Linear(2, 2))
    both = CallObserver(model).attach(), CallObserver(model).attach()
    model(torch.ones(1, 2))
    ended, goes_on = both[first_out], both[1 - first_out]
    ended.detach()
    model(torch.ones(1, 2))
    assert [call.name for call in ended.calls] == ["#0", "0#0"]
    assert [call.name for call in goes_on.detach()] == ["#0", "0#0", "#1", "0#1"]
    assert "forward" not in model.__dict__
    model(torch.ones(1, 2))
    assert len(ended.calls) == 2 and len(goes_on.calls) == 4
