"""The moment before an optimizer changes the model: gradients complete and clipped, settings as they will be used.

No hook of a trainer lies there: Lightning clips inside of the closure that it gives to `optimizer.step`. So the step is
watched itself, whoever calls it: where it has a closure that is watched as well, and what it leaves is what is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from nest_ssl.record.observers.changes import same
from nest_ssl.record.observers.copies import same_bits

Gradients = Mapping[str, Tensor | None]


class UpdateObserver:
    """Calls `ready` with the first optimizer that is about to change parameters of `model`, between attach and detach.

    Args:
        ready: must change nothing.
    """

    def __init__(self, model: nn.Module, ready: Callable[[Optimizer], None]) -> None:
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._ready: Callable[[Optimizer], None] | None = ready
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        self._handles.append(register_optimizer_step_pre_hook(self._begins))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Hooks of all optimizers run before an optimizer's own, which may still edit gradients: so be its last."""
        parameters = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        if self._ready and not self._parameters.isdisjoint(parameters):
            self._handles.append(optimizer.register_step_pre_hook(self._last))

    def _last(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._report(optimizer)
            return None

        def closed() -> Any:
            loss = closure()
            self._report(optimizer)
            return loss

        return ((args[0], closed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": closed})

    def _report(self, optimizer: Optimizer) -> None:
        if self._ready:
            ready, self._ready = self._ready, None
            ready(optimizer)


def applied(gradients: Gradients, of_backward: Gradients) -> dict[str, Any]:
    """The content of `applied_gradients.pt`.

    Args:
        gradients: as the optimizer finds them, by parameter.
        of_backward: as backward left them, and as they were recorded.

    Returns:
        `norm`, that of all gradients of backward, as clipping takes it; `factor`, by which those in `scaled` were
        multiplied, each element rounded to its type, so that they need not be kept; in `entries` all others that are
        not those of backward.
    """
    changed = {
        name: gradient
        for name, gradient in gradients.items()
        if name not in of_backward or not same(gradient, of_backward[name])
    }
    factor = common_factor(changed, of_backward)
    scaled = [name for name, gradient in changed.items() if _is_product(gradient, of_backward.get(name), factor)]
    dense = [g for g in of_backward.values() if g is not None and g.layout is torch.strided]
    norms = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32)) for g in dense]
    return {
        "norm": torch.linalg.vector_norm(torch.stack(norms)) if norms else None,
        "factor": factor if scaled else None,
        "scaled": scaled,
        "entries": {name: gradient for name, gradient in changed.items() if name not in scaled},
    }


def common_factor(changed: Gradients, of_backward: Gradients) -> Tensor | None:
    """A number that gives the largest of the changed gradients, bit for bit, from that of backward; else None."""
    pairs = [(g, raw) for name, g in changed.items() if g is not None and (raw := of_backward.get(name)) is not None]
    pairs = [(g, raw) for g, raw in pairs if g.is_floating_point() and g.shape == raw.shape and raw.any()]
    if not pairs:
        return None
    gradient, raw = max(pairs, key=lambda pair: pair[1].numel())
    at = raw.abs().flatten().argmax()
    guess = (gradient.flatten()[at].double() / raw.flatten()[at].double()).to(raw.dtype)
    tried = [guess]
    # The quotient of two rounded numbers may lie beside it.
    for direction in (-torch.inf, torch.inf) if guess.dtype in (torch.float32, torch.float64) else ():
        near = guess
        for _ in range(2):
            near = torch.nextafter(near, torch.tensor(direction, dtype=near.dtype))
            tried.append(near)
    return next((factor for factor in tried if _is_product(gradient, raw, factor)), None)


def _is_product(gradient: Tensor | None, raw: Tensor | None, factor: Tensor | None) -> bool:
    return gradient is not None and raw is not None and factor is not None and same_bits(gradient, raw * factor)
