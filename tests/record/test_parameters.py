"""Weights, gradients and optimizer state carry the names of parameters."""

from __future__ import annotations

import torch
from torch import nn

from nest_ssl.record.observers.parameters import gradients, optimizer_state, weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("hidden", torch.ones(1), persistent=False)


def test_weights_are_parameters_and_all_buffers() -> None:
    names = {"used.weight", "used.bias", "unused.weight", "unused.bias", "frozen", "hidden"}
    assert set(weights(Net())) == names


def test_gradients_of_what_is_trained_and_none_where_backward_did_not_come() -> None:
    net = Net()
    net.used(torch.ones(1, 2)).sum().backward()
    found = gradients(net)
    assert set(found) == {"used.weight", "used.bias", "unused.weight", "unused.bias"}
    assert found["unused.weight"] is None
    assert found["used.bias"] is not None and found["used.bias"].tolist() == [1, 1]


def test_optimizer_state_by_name() -> None:
    net = Net()
    net.used(torch.ones(1, 2)).sum().backward()
    groups = [{"params": net.used.parameters()}, {"params": [net.unused.bias], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    optimizer.step()
    state = optimizer_state(net, optimizer)
    assert [(group["params"], group["lr"]) for group in state["param_groups"]] == [
        (["used.weight", "used.bias"], 0.1), (["unused.bias"], 0.5),
    ]  # fmt: skip
    assert state["state"]["used.bias"]["momentum_buffer"].tolist() == [1, 1]
