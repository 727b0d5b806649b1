"""The recorder's traps: shared modules, in-place edits, repeated and keyword calls, views, outputs that nobody uses."""

from __future__ import annotations

import torch
from torch import nn

from nest_ssl.base.nested import tensors
from nest_ssl.record.observers.calls import CallCapture


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


def _run(record: bool) -> tuple[list[dict], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = InPlaceNet()
    x = torch.randn(2, 2, 5)
    capture = CallCapture(net).attach() if record else None
    net.forward(x, shift=x)["y"].square().sum().backward()
    calls = capture.detach() if capture else []
    return calls, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def _call(calls: list[dict], module: str, number: int = 0) -> dict:
    return next(c for c in calls if c["module"] == module and c["call"] == number)


def test_every_call_of_a_shared_module_is_kept_in_order() -> None:
    calls, _ = _run(record=True)
    names = [f"{c['module']}#{c['call']}" for c in calls]
    assert names == ["#0", "first#0", "relu#0", "second#0", "relu#1", "scale#0", "scale#1"]
    assert [c["index"] for c in calls] == list(range(7))
    assert _call(calls, "")["end_index"] == 6, "the root ends last"


def test_outputs_are_copied_before_the_in_place_edit() -> None:
    calls, _ = _run(record=True)
    before, after = _call(calls, "first")["output"], _call(calls, "relu")["output"]
    assert (before < 0).any() and torch.equal(before.clamp(min=0), after)
    assert torch.equal(_call(calls, "relu")["args"][0], before)


def test_positional_and_keyword_arguments_are_named() -> None:
    calls, _ = _run(record=True)
    assert _call(calls, "scale", 0)["arg_names"] == ["value"]
    assert _call(calls, "scale", 0)["kwargs"] == {"factor": 2.0}
    assert set(_call(calls, "scale", 1)["kwargs"]) == {"value", "factor"}
    assert _call(calls, "")["arg_names"] == ["x"] and list(_call(calls, "")["kwargs"]) == ["shift"]


def test_output_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(5, 3)
    capture = CallCapture(net).attach()
    net.forward(x).sum().backward()
    calls = capture.detach()
    hidden = net[0](x).detach().requires_grad_()
    (expected,) = torch.autograd.grad(net[2](net[1](hidden)).sum(), hidden)
    assert torch.equal(_call(calls, "0")["output_grads"][""], expected)
    assert _call(calls, "2")["grad_index"] < _call(calls, "0")["grad_index"], "backward order"


def test_watching_changes_no_gradient() -> None:
    _, watched = _run(record=True)
    _, bare = _run(record=False)
    assert watched.keys() == bare.keys()
    assert all(torch.equal(watched[n], bare[n]) for n in bare)


def test_detach_leaves_no_hook_and_no_wrapper() -> None:
    net = InPlaceNet()
    CallCapture(net).attach().detach()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert "forward" not in vars(net)


def test_a_forward_of_the_models_own_instance_comes_back() -> None:
    net = InPlaceNet()
    net.forward = forward = lambda x: {"y": x}  # type: ignore[method-assign]
    capture = CallCapture(net).attach()
    net.forward(torch.ones(1))
    assert [call["module"] for call in capture.detach()] == [""]
    assert net.forward is forward


def test_the_same_tensor_is_copied_once_and_an_edited_one_again() -> None:
    calls, _ = _run(record=True)
    passed_on = _call(calls, "relu", 1)["output"]
    assert _call(calls, "scale")["args"][0] is passed_on
    assert _call(calls, "first")["output"] is not _call(calls, "relu")["output"]


def test_calls_hold_only_tensors_and_builtins() -> None:
    calls, _ = _run(record=True)
    for call in calls:
        for _, tensor in tensors(call["output"]):
            assert not tensor.requires_grad and tensor.device.type == "cpu"
