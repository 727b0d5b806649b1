"""Gradients of parameters: what each replayed call brings, summed in the order in which backward sums them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from nest_ssl.record.observers.copies import same_bits


class Share(Enum):
    """What is kept of a call's share in a gradient where it is no tensor."""

    AS_RECORDED = "as recorded"  # the recorded gradient itself, which need not be kept twice
    DOUBTED = "doubted"  # it depends on a call that is not trusted


class Gradients:
    """Collects the shares of the calls of one step.

    Hooks of a parameter see the sum alone, as in training: they are taken off while shares are collected.

    Args:
        parameters: of the model, by the reference's names.
        recorded: the gradients after backward, by parameter.
        before: what `.grad` held before backward; a parameter that is not in it held nothing.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        recorded: Mapping[str, Tensor | None],
        before: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.parameters = parameters
        self.recorded, self.before = recorded, before or {}
        self._hooks: dict[str, list[tuple[Any, dict[int, Any]]]] = {}
        self._shares: dict[str, dict[int, Tensor | Share]] = defaultdict(dict)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """No parameter has a gradient or a hook within; afterwards each has what it had."""
        kept = {name: parameter.grad for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.grad = None
            for table in (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)):
                if table:
                    self._hooks.setdefault(name, []).append((table, dict(table)))
                    table.clear()
        try:
            yield
        finally:
            self._put_hooks_back()
            for name, parameter in self.parameters.items():
                parameter.grad = kept[name]

    def take(self) -> dict[str, Tensor]:
        """The gradients that are there, which then are there no more."""
        taken = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                taken[name], parameter.grad = parameter.grad, None
        return taken

    def add(self, name: str, call: int, share: Tensor | None) -> None:
        """The share of a call, by its index; None: it is doubted."""
        recorded = self.recorded.get(name)
        if share is None:
            self._shares[name][call] = Share.DOUBTED
        elif recorded is not None and same_bits(share, recorded):
            self._shares[name][call] = Share.AS_RECORDED
        else:
            self._shares[name][call] = share

    def drop(self, call: int) -> None:
        """The candidate does not make this call."""
        for shares in self._shares.values():
            shares.pop(call, None)

    def judged(self) -> Iterator[tuple[str, list[int], Tensor | None]]:
        """Of each parameter the calls with a share, and the gradient that they make together; None where there is none.

        Parameters with a doubted share are left out.
        """
        self._put_hooks_back()
        for name in dict.fromkeys([*self.recorded, *self._shares]):
            shares = self._shares.get(name, {})
            if any(share is Share.DOUBTED for share in shares.values()) or name not in self.parameters:
                continue
            total: Tensor | None = None
            for call in sorted(shares, reverse=True):
                share = shares[call]
                tensor = self.recorded[name] if share is Share.AS_RECORDED else share
                assert isinstance(tensor, Tensor)
                tensor = tensor.to(self.parameters[name].device)
                total = tensor if total is None else total + tensor
            if total is not None and (name in self._hooks or name in self.before):
                total = self._accumulated(name, total)
            yield name, sorted(shares), total
        self._hooks.clear()

    def _accumulated(self, name: str, total: Tensor) -> Tensor | None:
        """What backward makes of a sum: hooks see it, then it is added to what `.grad` holds."""
        parameter = self.parameters[name]
        before = self.before.get(name)
        parameter.grad = None if before is None else before.to(parameter.device, copy=True)
        torch.autograd.backward([parameter.view_as(parameter)], [total.clone()])  # type: ignore[no-untyped-call]
        gradient, parameter.grad = parameter.grad, None
        return gradient

    def _put_hooks_back(self) -> None:
        for tables in self._hooks.values():
            for table, hooks in tables:
                table.update(hooks)
