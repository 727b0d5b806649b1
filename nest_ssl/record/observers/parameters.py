"""Weights, gradients and the optimizer's state, by the names of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nest_ssl.base.nested import leaves, to_builtins
from nest_ssl.record.observers.copies import holder
from nest_ssl.recording.tensors import storable, tensor_digest


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and every buffer (also those that a state_dict leaves out) by name, held by a `holder`."""
    named = [*model.named_parameters(), *model.named_buffers()]
    held = holder(tensor for _, tensor in named)
    return {name: held(tensor) for name, tensor in named}


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    """The gradient of every trained parameter, held by a `holder`; None where backward reached none."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    held = holder(found.values())
    return {name: None if gradient is None else held(gradient) for name, gradient in found.items()}


def gradient_digests(model: nn.Module) -> dict[str, str | None]:
    """What every trained parameter's gradient holds: None, ``"zero"``, or the digest of what is there."""
    digests: dict[str, str | None] = {}
    for name, gradient in gradients(model).items():
        if gradient is None:
            digests[name] = None
        else:
            dense = storable(gradient)
            digests[name] = tensor_digest(dense) if dense.any() else "zero"
    return digests


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name, and its groups with the names of their parameters.

    A parameter that is not the model's is named after its place: ``(group 0, parameter 3)``.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            names.setdefault(id(parameter), f"(group {number}, parameter {place})")
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    state = {names[id(p)]: dict(entries) for p, entries in optimizer.state.items()}
    held = holder(leaf for _, leaf in leaves(state))
    return to_builtins({"state": state, "param_groups": groups}, held)  # type: ignore[no-any-return]
