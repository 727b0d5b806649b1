"""A training step by hand, as a user of `nest_ssl.recording` writes it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nest_ssl.record.session import Session


def recorded_step(r: Session, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """Everything behind `r.batch`: the loss is the mean square of the output."""
    loss = model(x).square().mean()
    r.loss(loss)
    optimizer.zero_grad()
    loss.backward()
    r.backward_done()
    optimizer.step()
    r.step_done(optimizer)
