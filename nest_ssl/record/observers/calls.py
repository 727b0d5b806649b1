"""Watches every call of every module during one training step, without changing it.

What a hook sees is copied at once: an in-place ReLU overwrites the tensor that the convolution before it returned, and
dither is added in place to the batch. Output gradients come from tensor hooks, not from module backward hooks, which
would turn outputs into views and break on in-place edits. Modules may be shared and called many times: every call is
kept.
"""

from __future__ import annotations

import inspect
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nest_ssl.base.nested import tensors, to_builtins
from nest_ssl.record.observers.draws import Ledger
from nest_ssl.recording.stages import LOSS


class CallCapture:
    """The calls of `root` and of every module in it, from `attach` to `detach`.

    `root` itself is watched by wrapping its `forward`, because trainers call `model.forward(...)` and hooks live in
    `model(...)`. Its name is the empty string. A `ledger` is told of every start and end of a call.
    """

    def __init__(self, root: nn.Module, ledger: Ledger | None = None) -> None:
        self.root = root
        self.ledger = ledger
        self.calls: list[dict[str, Any]] = []
        self._copies = _CopyOnce()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._open: list[dict[str, Any]] = []  # innermost last
        self._own_forward: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()
        self._ended = 0
        self._backward = 0

    def attach(self) -> CallCapture:
        """Register the hooks; until `detach` every call is recorded."""
        for name, module in self.root.named_modules():
            if module is not self.root:
                before, after = self._hooks(name)
                self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                self._handles.append(module.register_forward_hook(after, with_kwargs=True))
        self._wrap_root()
        return self

    def detach(self) -> list[dict[str, Any]]:
        """Remove every hook and return the calls in the order in which they started."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.root.__dict__.pop("forward", None)
        self.root.__dict__.update(self._own_forward)
        self._copies.forget()
        return self.calls

    def _hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._start(name, module, args, kwargs)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._end(name, output)

        return before, after

    def _wrap_root(self) -> None:
        original = self.root.forward
        self._own_forward = {k: v for k, v in self.root.__dict__.items() if k == "forward"}  # not the class's

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._start("", self.root, args, kwargs)
            output = original(*args, **kwargs)
            self._end("", output)
            return output

        self.root.__dict__["forward"] = forward

    def _start(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.ledger:
            self.ledger.close(self._open[-1] if self._open else None)
        call = {
            "index": len(self.calls),
            "module": name,
            "call": self._counts[name],
            "training": module.training,
            "args": to_builtins(args, self._copies.copy),
            "arg_names": _positional_names(type(module), len(args)),
            "kwargs": to_builtins(kwargs, self._copies.copy),
            "output": None,
            "output_grads": {},
            "grad_index": None,
        }
        self._counts[name] += 1
        self.calls.append(call)
        self._open.append(call)

    def _end(self, name: str, output: Any) -> None:
        call = self._open.pop()
        while call["module"] != name:  # a call inside raised an error that was caught here
            call = self._open.pop()
        if self.ledger:
            self.ledger.close(call)
            if not name:
                self.ledger.enter(LOSS)
        call["end_index"] = self._ended
        self._ended += 1
        call["output"] = to_builtins(output, self._copies.copy)
        for path, tensor in tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(self._gradient_hook(call, path))

    def _gradient_hook(self, call: dict[str, Any], path: str) -> Callable[[torch.Tensor], None]:
        def hook(gradient: torch.Tensor) -> None:
            if call["grad_index"] is None:
                call["grad_index"] = self._backward
                self._backward += 1
            call["output_grads"][path] = self._copies.copy(gradient)

        return hook


class _CopyOnce:
    """Copies tensors to the CPU; the same tensor, unedited since, once: one module's output is the next one's input.

    Identity alone would not do: an address is reused after a tensor dies, and an in-place edit changes its values.
    So an entry counts only while its tensor lives and its version is the same.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int, torch.Tensor]] = {}

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        entry = self._known.get(id(tensor))
        if entry is not None and entry[0]() is tensor and entry[1] == tensor._version:
            return entry[2]
        copied = copy_to_cpu(tensor)
        self._known[id(tensor)] = (weakref.ref(tensor), tensor._version, copied)
        return copied

    def forget(self) -> None:
        self._known.clear()


def copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A detached copy that later in-place edits do not reach."""
    return tensor.detach().to("cpu", copy=True)


_NAMES: dict[type, list[str]] = {}


def _positional_names(kind: type, count: int) -> list[str]:
    """The names that `count` positional arguments of `forward` have; their positions where it takes `*args`."""
    if kind not in _NAMES:
        try:
            parameters = list(inspect.signature(kind.forward).parameters.values())[1:]
        except (TypeError, ValueError):
            parameters = []
        named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        _NAMES[kind] = [p.name for p in parameters if p.kind in named]
    names = _NAMES[kind]
    return [names[i] if i < len(names) else str(i) for i in range(count)]
