"""Watches every call of every module during one training step, without changing it.

What a hook sees is copied at once: an in-place ReLU overwrites the tensor that the convolution before it returned, and
dither is added in place to the batch. Output gradients come from tensor hooks, not from module backward hooks, which
would turn outputs into views and break on in-place edits. Modules may be shared and called many times: every call is
kept. Calls that begin after the loss are kept apart: activation checkpointing runs layers again in backward, and what
the forward did is the same with and without it. Of what torch.compile compiles only the whole is watched.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from nest_ssl.base.nested import tensors, to_builtins
from nest_ssl.base.renaming import COMPILED
from nest_ssl.record.observers.copies import Copies
from nest_ssl.record.observers.draws import DrawObserver
from nest_ssl.recording.calls import Call


@dataclass
class _Sequence:
    """Calls in the order in which they started; starts and ends are numbered together."""

    calls: list[Call] = field(default_factory=list)
    open: list[tuple[Call, BaseException | None]] = field(default_factory=list)  # innermost last
    counts: Counter[str] = field(default_factory=Counter)
    events: int = 0


class CallObserver:
    """The calls of `root` and of every module in it, from `attach` to `detach`.

    `root` itself is watched by wrapping its `forward`, because trainers call `model.forward(...)` and hooks live in
    `model(...)`. Its name is the empty string. `draws`, if any, is asked to close a stretch at every start and end of a
    call. `modules` names those in it that are watched, all when None; `copies` keeps what they see.
    """

    def __init__(
        self,
        root: nn.Module,
        draws: DrawObserver | None = None,
        modules: Container[str] | None = None,
        copies: Callable[[], Copies] = Copies,
    ) -> None:
        self.root, self._modules = root, modules
        self.draws = draws
        self._forward, self._later = _Sequence(), _Sequence()
        self._now = self._forward
        self.calls, self.later = self._forward.calls, self._later.calls  # of the forward; begun after the loss
        self._new_copies, self._copies = copies, copies()
        self._hooks: dict[nn.Module, tuple[RemovableHandle, RemovableHandle]] = {}
        self._tensor_hooks: list[RemovableHandle] = []
        self._own_forward: dict[str, Any] = {}
        self._wrapper: Callable[..., Any] | None = None  # of the root's forward
        self._detached = False
        self._gradients = 0  # calls that backward has reached
        self.enclosing: dict[str, str] = {}  # of each call by its name, the call that it was made in; "" for none

    @property
    def innermost(self) -> Call | None:
        """The call that is open, and has none open inside."""
        return self._now.open[-1][0] if self._now.open else None

    def attach(self) -> CallObserver:
        """Register the hooks; until `detach` every call is recorded."""
        for name, module in watchable(self.root):
            if self._modules is None or name in self._modules:
                start, end = functools.partial(self._start, name), functools.partial(self._end, name)
                self._hooks[module] = (
                    module.register_forward_pre_hook(start, with_kwargs=True),
                    module.register_forward_hook(end, with_kwargs=True, always_call=True),
                )
        original = self.root.forward
        self._own_forward = {k: v for k, v in self.root.__dict__.items() if k == "forward"}  # not the class's

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._detached:  # another observer was put around this one, and is still there
                return original(*args, **kwargs)
            for module in self._hooks:
                self._come_last(module)
            self._start("", self.root, args, kwargs)
            output = None
            try:
                output = original(*args, **kwargs)
                return output
            finally:
                self._end("", self.root, args, kwargs, output)

        self._wrapper = forward
        self.root.__dict__["forward"] = forward
        forward.__dict__["_observer"] = self
        return self

    def loss_reached(self) -> None:
        """Keep the calls that begin from here on apart."""
        self._now = self._later

    def detach(self) -> list[Call]:
        """Remove every hook, also those on tensors that live on; returns the calls of the forward."""
        for handle in [handle for pair in self._hooks.values() for handle in pair] + self._tensor_hooks:
            handle.remove()
        self._hooks.clear()
        self._tensor_hooks.clear()
        self._detached = True
        self._unwrap()
        for sequence in (self._forward, self._later):
            for call, _ in sequence.open:  # something else than an exception went through it
                call.end, call.raised = sequence.events, True
            sequence.open.clear()
            self._copies.settled(sequence.calls)
        self._copies.trace(self.calls)
        self._copies = self._new_copies()
        return self.calls

    def _unwrap(self) -> None:
        """Give the model its own forward back, and that of every observer inside which ended before this one.

        Where another observer was put around this one, it stays until that one ends.
        """
        observer: CallObserver | None = self if self._wrapper else None  # it may never have been attached
        while observer is not None and observer._detached and self.root.__dict__.get("forward") is observer._wrapper:
            inner = observer._own_forward.get("forward")
            self.root.__dict__.pop("forward")
            self.root.__dict__.update(observer._own_forward)
            observer = getattr(inner, "_observer", None)

    def _come_last(self, module: nn.Module) -> None:
        """Hooks run in the order of registration; what a later one changed would seem to come from nowhere."""
        for handle, hooks in zip(self._hooks[module], (module._forward_pre_hooks, module._forward_hooks), strict=True):
            hooks[handle.id] = hooks.pop(handle.id)

    def _start(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in self._hooks:
            self._come_last(module)
        now, keep = self._now, self._copies.keep
        event = self._count_event(now)
        module = module._modules.get(COMPILED) or module
        names = positional_names(type(module).forward, len(args))
        place = len(now.calls), name, now.counts[name], module.training
        call = Call(*place, keep(args), names, keep(kwargs), start=event)
        self.enclosing.setdefault(call.name, self.innermost.name if self.innermost else "")
        now.counts[name] += 1
        now.calls.append(call)
        now.open.append((call, sys.exc_info()[1]))

    def _end(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        now = self._now
        if all(call.module != name for call, _ in now.open):
            return  # it never started: another hook raised first
        event = self._count_event(now)
        if self.draws and not name and now is self._forward:
            self.draws.enter("loss")
        while True:
            call, error_before = now.open.pop()
            call.end = event
            call.raised = call.module != name or sys.exc_info()[1] is not error_before
            if call.module == name:
                break
        if call.raised:
            return
        call.output = self._copies.keep(output)
        for path, tensor in tensors(to_builtins(output, lambda tensor: tensor)):  # a dataclass too
            if tensor.requires_grad:
                handle = tensor.register_hook(functools.partial(self._gradient, call, path))  # type: ignore[no-untyped-call]
                self._tensor_hooks.append(handle)

    def _count_event(self, now: _Sequence) -> int:
        """The number of this start or end."""
        if (
            self.draws and now is self._forward
        ):  # backward is one stretch: checkpointing rewinds the generators and returns
            self.draws.close(now.open[-1][0] if now.open else None, now.events)
        now.events += 1
        return now.events - 1

    def _gradient(self, call: Call, path: str, gradient: torch.Tensor) -> None:
        if call.grad_event is None:
            call.grad_event = self._gradients
            self._gradients += 1
        call.output_grads[path] = self._copies.copy(gradient)


def watchable(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules in `root` that hooks may be put on, by name.

    What is compiled is compiled with the hooks in it, and would be another program for being watched. Of what
    `torch.compile` wraps the wrapper is watched alone, in the name of what it wraps; what `module.compile()` compiles
    has no place outside. A module that is called there as well as elsewhere is not watched at all.
    """
    compiled = compiled_in(root)
    for name, module in root.named_modules():
        if module is not root and module not in compiled:
            yield f"{name}.{COMPILED}" if COMPILED in module._modules else name, module


def compiled_in(root: nn.Module) -> set[nn.Module]:
    """The modules that torch.compile makes one program of, with all that is in them."""
    wrapped = [module._modules.get(COMPILED) for module in root.modules()]
    tops = [*wrapped, *(module for module in root.modules() if module._compiled_call_impl is not None)]
    return {inner for module in tops if module is not None for inner in module.modules()}


@functools.cache
def positional_names(forward: Callable[..., Any], count: int) -> list[str]:
    """The names that `count` positional arguments of `forward` have; their positions where it takes `*args`."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        parameters = []
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in named]
    return [names[i] if i < len(names) else str(i) for i in range(count)]
