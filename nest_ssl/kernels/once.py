"""Backwards that write over what they read, and so are never differentiated themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

TWICE = (
    "a gradient that is to be differentiated again (create_graph=True) has to come from the open model: put a hook on "
    "the modules, as `for module in model.modules(): module.register_forward_hook(lambda *_: None)`"
)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the backward of a `torch.autograd.Function`. Torch's decorator of this name has an error come up when the
    gradient is differentiated, but `torch.autograd.grad` passes it by, and returns numbers without this part.

    Raises:
        RuntimeError: (the backward) with `create_graph=True`.
    """

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(TWICE)
        return backward(ctx, *gradients)

    return checked
