"""The ATen operators of one training step, in the order in which they run: forward, backward and optimizer.

observer = OperatorObserver(calls, step=0).attach()      # calls: a `CallObserver` that is attached
...                                                      # forward
observer.enter("backward")
...
observer.enter("optimizer")
...
observer.detach()
traced = observer.result()                               # a `StepOperators`

It stands below autograd and above the kernels, so what it sees is what runs: of `F.linear` an `aten.t` and an
`aten.addmm`, and of their backward two `aten.mm`. Each operator is passed on as it came, so no bit changes.

Whose an operator is:

- in forward, the innermost call of a module that is open;
- in backward, the call whose forward made the node that runs. Autograd numbers its nodes; the number of the one just
  made is read at each operator of the forward (``torch.autograd._get_sequence_nr``, as torch's own tracer does);
- in the optimizer, the module of the parameter whose memory, gradient's or state's it works on.

What the recorder itself does in its hooks is left out. A part that is compiled with ``torch.compile`` runs uncompiled
while it is watched.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from types import CodeType
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.record.observers.lines import SourceLines, innermost
from nest_ssl.recording.evidence import Operator, StepOperators
from nest_ssl.recording.index import Scalar

Phase = Literal["forward", "backward", "optimizer"]
Place = tuple[str | None, int | None]  # module and number of its call
OUTSIDE: Place = (None, None)  # of all modules
NOT_TORCH = ("python", "numpy")  # generators whose draws are no operators
NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format)  # arguments that are known by their names


class OperatorObserver(TorchDispatchMode):
    """The operators from `attach` to `detach`.

    Args:
        calls: says which module's call is open.
        step: number of the step.
        modules: patterns (`encoder.layers.0*`) of the modules to watch, with all that is called in them; none: all, and
            what runs outside of modules.
        unwatched: functions that are no part of training, as a logger's.
    """

    def __init__(
        self, calls: CallObserver, step: int, modules: Sequence[str] = (), unwatched: Collection[CodeType] = ()
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls, self._step, self._patterns, self._lines = calls, step, list(modules), SourceLines(unwatched)
        self._phase: Phase = "forward"
        self._operators: list[Operator] = []
        self._watched: dict[Place, bool] = {}
        self._nodes: list[int] = []  # numbers of autograd's nodes: the first that an operator of the forward made,
        self._makers: list[tuple[Place, str]] = []  # and whose that operator was, and its source line
        self._names = {parameter: name for name, parameter in calls.root.named_parameters()}
        self._owners: dict[int, str] = {}  # by address, the module whose parameter the memory belongs to
        self._draws = calls.draws.count if calls.draws else 0

    def attach(self) -> OperatorObserver:
        self.__enter__()  # type: ignore[no-untyped-call]
        return self

    def enter(self, phase: Phase) -> None:
        """From now on operators are of another phase; when the optimizer's begins, backward is done."""
        self._take_draws()
        self._phase = phase
        if phase == "optimizer":
            for parameter, name in self._names.items():
                self._own(name, [parameter] if parameter.grad is None else [parameter, parameter.grad])

    def update_begins(self, optimizer: torch.optim.Optimizer) -> None:
        """Its state is complete but for what it makes in its first step."""
        for parameter, name in self._names.items():
            self._own(name, tensors_in([*optimizer.state.get(parameter, {}).values()]))

    def detach(self) -> None:
        """Watch no longer."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._take_draws()

    def result(self) -> StepOperators:
        """What ran."""
        return StepOperators(
            step=self._step,
            operators=self._operators,
            modules=self._patterns,
            enclosing=self._calls.enclosing,
            lines={o.source: self._lines.texts[o.source] for o in self._operators if o.source},
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, frame = kwargs or {}, innermost(sys._getframe(1))
        if func.namespace == "profiler" or not self._lines.is_watched(frame):
            return func(*args, **kwargs)
        self._take_draws()
        place, source = self._begin(self._lines.of(frame))
        output = func(*args, **kwargs)
        made = list(tensors_in(output))
        if self._phase == "optimizer" and place == OUTSIDE:
            place = self._follow([*tensors_in([args, list(kwargs.values())])], made), None
        if self._is_watched(place):
            # What was given, by the names of the operator's schema, which leaves out what has its default.
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            operator = Operator(
                name=str(func),
                phase=self._phase,
                module=place[0],
                call=place[1],
                tensors=[described(tensor) for value in given.values() for tensor in tensors_in(value)],
                arguments={
                    n: plain(v) for n, v in given.items() if v is not None and not any(True for _ in tensors_in(v))
                },
                outputs=list(map(described, made)),
                source=source,
            )
            self._operators.append(operator)
        return output

    def _begin(self, source: str) -> tuple[Place, str]:
        """Whose the operator that is about to run is, and its source line; both are kept for the nodes that it makes.

        Args:
            source: line of the Python code that runs it, if any does.
        """
        call, node = self._calls.innermost, torch._C._current_autograd_node()
        place: Place = OUTSIDE if call is None else (call.module, call.call)
        parameter = getattr(node, "variable", None)  # of a node that adds to its gradient
        if parameter is not None:
            name = self._names.get(parameter)
            place = OUTSIDE if name is None else (name.rpartition(".")[0], None)
        elif node is not None:
            number = bisect_right(self._nodes, node._sequence_nr()) - 1
            maker, line = self._makers[number] if number >= 0 else (OUTSIDE, "")
            place, source = maker if call is None else place, source or line
        made = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        if made > (self._nodes[-1] if self._nodes else -1):
            self._nodes.append(made)
            self._makers.append((place, source))
        return place, source

    def _own(self, name: str, memory: Iterable[torch.Tensor]) -> None:
        """What the memory is that of: the parameter of that name."""
        self._owners |= dict.fromkeys((tensor.data_ptr() for tensor in memory), name.rpartition(".")[0])

    def _follow(self, given: list[torch.Tensor], made: list[torch.Tensor]) -> str | None:
        """The module of the only parameter that an operator works on; what it reads and makes is then that one's."""
        owners = {self._owners[tensor.data_ptr()] for tensor in given if tensor.data_ptr() in self._owners}
        if len(owners) == 1:
            self._owners |= dict.fromkeys((tensor.data_ptr() for tensor in (*given, *made)), next(iter(owners)))
            return owners.pop()
        for tensor in made:  # its memory may have been another's
            self._owners.pop(tensor.data_ptr(), None)
        return None

    def _take_draws(self) -> None:
        """What was drawn meanwhile from generators that are not torch's."""
        draws = self._calls.draws
        if not draws or draws.count == self._draws:
            return
        for entry in draws.of(NOT_TORCH, self._draws):
            place = entry.module, entry.call
            if self._is_watched(place):
                drawn: dict[str, Scalar | list[Scalar]] = {"words": entry.draws}
                name, (module, call) = f"{entry.generator}.draw", place
                draw = Operator(name=name, phase=self._phase, module=module, call=call, arguments=drawn)
                self._operators.append(draw)
        self._draws = draws.count

    def _is_watched(self, place: Place) -> bool:
        """Whether a pattern names the module or one whose call encloses this one."""
        module, call = place
        if not self._patterns or module is None:
            return not self._patterns
        if place not in self._watched:
            names, outer = [module], self._calls.enclosing.get(f"{module}#{call}")
            while outer:
                names.append(outer.rpartition("#")[0])
                outer = self._calls.enclosing[outer]
            self._watched[place] = any(fnmatchcase(name, pattern) for name in names for pattern in self._patterns)
        return self._watched[place]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in arguments or results of an operator."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def described(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def plain(value: Any) -> Scalar | list[Scalar]:
    """Numbers, truth and text as they are; dtypes, devices and their like by name, anything else by its type."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]  # type: ignore[misc]
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    return str(value).removeprefix("torch.") if isinstance(value, NAMED) else type(value).__name__
