"""What is known so far of the step being recorded, and the observers that watch it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nest_ssl.base.nested import tensors, to_builtins
from nest_ssl.base.rng import rng_digests
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.copies import Answer, unlike
from nest_ssl.record.observers.draws import DrawObserver
from nest_ssl.record.observers.memory import shared_memory
from nest_ssl.record.observers.operators import OperatorObserver
from nest_ssl.record.observers.parameters import gradient_digests
from nest_ssl.record.observers.update import UpdateObserver
from nest_ssl.record.structure import qualified_name
from nest_ssl.recording.calls import Call


@dataclass
class Step:
    """What is known so far of the step being recorded."""

    place: dict[str, int]
    draws: DrawObserver
    calls: CallObserver
    update: UpdateObserver
    live_batch: Any  # the tensors that the model has, until the forward is done
    batch: Any  # as it was at the start
    training: dict[str, bool] = field(default_factory=dict)
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    loss: torch.Tensor | None = None
    loss_hook: RemovableHandle | None = None
    shared: list[list[str]] = field(default_factory=list)
    edited: dict[str, Answer] = field(default_factory=dict)  # of each field of the batch, whether it was
    gradients_before: dict[str, str | None] | None = None
    gradients: dict[str, torch.Tensor | None] | None = None
    operators: OperatorObserver | None = None

    def boundary(self, moment: str, phase: str) -> None:
        """Note the generators' states at a moment of the step; `phase` is what draws from there on."""
        self.states[moment] = rng_digests()
        self.draws.enter(phase)
        if self.operators and phase in ("backward", "optimizer_step"):
            self.operators.enter("backward" if phase == "backward" else "optimizer")

    def compare_batch(self) -> None:
        """The forward is done: which fields of the batch it has edited, and which of them are one memory."""
        live = dict(tensors(self.live_batch))
        self.shared = shared_memory(live.items())
        self.edited = {path: Answer(unlike(live[path], kept).reshape(1)) for path, kept in tensors(self.batch)}
        self.live_batch = None

    def backward_begins(self) -> None:
        if self.gradients_before is None:
            self.gradients_before = gradient_digests(self.calls.root)

    def leave(self) -> list[Call]:
        """Remove every hook; returns the calls of the forward."""
        if self.operators:
            self.operators.detach()
        self.update.detach()
        if self.loss_hook:
            self.loss_hook.remove()
        self.live_batch = None
        return self.calls.detach()

    def facts(self) -> dict[str, Any]:
        """What `StepFacts` holds, besides schedules."""
        edited = [path for path, differs in self.edited.items() if differs.wait().item()]
        return {**{n: getattr(self, n) for n in ("training", "gradients_before", "shared")}, "edited": edited}


def modes(model: nn.Module) -> dict[str, bool]:
    """Of each module whether it is in training mode."""
    return {name: module.training for name, module in model.named_modules()}


def describe(schedulers: Sequence[Any]) -> list[dict[str, Any]]:
    """Class and state of schedules, in plain values."""
    states = [to_builtins(scheduler.state_dict(), lambda tensor: tensor.tolist()) for scheduler in schedulers]
    return [{"class": qualified_name(s), "state": state} for s, state in zip(schedulers, states, strict=True)]
