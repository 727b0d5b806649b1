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

import linecache
import os
import sys
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Literal

import torch
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode

from nest_ssl.record.observers import calls as calls_file
from nest_ssl.record.observers.calls import CallObserver
from nest_ssl.recording.evidence import Operator, StepOperators
from nest_ssl.recording.index import Scalar

Phase = Literal["forward", "backward", "optimizer"]
LONGEST_LINE = 160  # letters of a source line that are kept
_TORCH = str(Path(torch.__file__).parent) + os.sep
_RECORDER, _BASE = (str(Path(__file__).parents[2] / room) + os.sep for room in ("record", "base"))
_NOT_COMPUTING = ("profiler",)  # namespaces of operators that mark what runs, and compute nothing
_NOT_TORCH = ("python", "numpy")  # generators whose draws are no operators
Place = tuple[str | None, int | None]  # module and number of its call
OUTSIDE: Place = (None, None)  # of all modules


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
        self._calls, self._step, self._patterns, self._unwatched = calls, step, list(modules), unwatched
        self._phase: Phase = "forward"
        self._operators: list[Operator] = []
        self._lines: dict[str, str] = {}  # text of each source line
        self._watched: dict[tuple[str | None, int | None], bool] = {}
        self._nodes: list[int] = []  # numbers of autograd's nodes: the first that an operator of the forward made,
        self._makers: list[tuple[Place, str]] = []  # and whose that operator was, and its source line
        self._names = {parameter: name for name, parameter in calls.root.named_parameters()}
        self._owners: dict[int, str] = {}  # by address, the module whose parameter the memory belongs to
        self._draws = len(calls.draws.entries)

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
            self._own(name, _tensors([*optimizer.state.get(parameter, {}).values()]))

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
            lines={o.source: self._lines[o.source] for o in self._operators if o.source},
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        frame = _innermost(sys._getframe(1))
        if func.namespace in _NOT_COMPUTING or self._is_unwatched(frame):
            return func(*args, **kwargs)
        self._take_draws()
        place, source = self._place(self._source(frame))
        output = func(*args, **kwargs)
        if self._phase == "optimizer" and place == OUTSIDE:
            place = self._owner(list(_tensors([args, list(kwargs.values())])), list(_tensors(output))), None
        if self._is_watched(*place):
            tensors, arguments = _sorted_arguments(func, args, kwargs)
            self._operators.append(
                Operator(
                    name=str(func),
                    phase=self._phase,
                    module=place[0],
                    call=place[1],
                    tensors=tensors,
                    arguments=arguments,
                    outputs=[_described(tensor) for tensor in _tensors(output)],
                    source=source,
                )
            )
        return output

    def _place(self, source: str) -> tuple[Place, str]:
        """Whose the operator that is about to run is, and where it stands."""
        call, node = self._calls.innermost, torch._C._current_autograd_node()
        place: Place = OUTSIDE if call is None else (call.module, call.call)
        if node is not None:
            maker, line = self._maker(node)
            place, source = maker if call is None else place, source or line
        made = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        if made > (self._nodes[-1] if self._nodes else -1):
            self._nodes.append(made)
            self._makers.append((place, source))
        return place, source

    def _maker(self, node: Any) -> tuple[Place, str]:
        """Whose operator of the forward made a node of autograd, and where that stands."""
        if hasattr(node, "variable"):  # it adds to a gradient
            name = self._names.get(node.variable)
            return OUTSIDE if name is None else (name.rpartition(".")[0], None), ""
        number = bisect_right(self._nodes, node._sequence_nr()) - 1
        return self._makers[number] if number >= 0 else (OUTSIDE, "")

    def _own(self, name: str, memory: Iterable[torch.Tensor]) -> None:
        """What the memory is that of: the parameter of that name."""
        self._owners |= dict.fromkeys((tensor.data_ptr() for tensor in memory), name.rpartition(".")[0])

    def _owner(self, given: list[torch.Tensor], made: list[torch.Tensor]) -> str | None:
        """The module of the only parameter that an operator works on; what it reads and makes is then that one's."""
        owners = {self._owners[tensor.data_ptr()] for tensor in given if tensor.data_ptr() in self._owners}
        if len(owners) == 1:
            self._owners |= dict.fromkeys((tensor.data_ptr() for tensor in (*given, *made)), next(iter(owners)))
            return owners.pop()
        for tensor in made:  # its memory may have been another's
            self._owners.pop(tensor.data_ptr(), None)
        return None

    def _source(self, frame: FrameType | None) -> str:
        if frame is None:
            return ""
        source = f"{_below_package(frame.f_code, frame.f_globals.get('__name__', ''))}:{frame.f_lineno}"
        if source not in self._lines:
            text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            self._lines[source] = text.strip()[:LONGEST_LINE]
        return source

    def _is_unwatched(self, frame: FrameType | None) -> bool:
        """Whether the recorder, or a function that is no part of training, is at work."""
        if frame is not None and frame.f_code.co_filename.startswith(_RECORDER):
            return True
        while frame is not None and frame.f_code not in self._unwatched:
            frame = frame.f_back
        return frame is not None

    def _take_draws(self) -> None:
        """What was drawn meanwhile from generators that are not torch's."""
        entries = self._calls.draws.entries
        for entry in entries[self._draws :]:
            if entry.generator in _NOT_TORCH and self._is_watched(entry.module, entry.call):
                draw = Operator(name=f"{entry.generator}.draw", phase=self._phase, module=entry.module,
                                call=entry.call, arguments={"words": entry.draws})  # fmt: skip
                self._operators.append(draw)
        self._draws = len(entries)

    def _is_watched(self, module: str | None, call: int | None) -> bool:
        """Whether a pattern names the module or one whose call encloses this one."""
        if not self._patterns or module is None:
            return not self._patterns
        if (module, call) not in self._watched:
            names, outer = [module], self._calls.enclosing.get(f"{module}#{call}")
            while outer:
                names.append(outer.rpartition("#")[0])
                outer = self._calls.enclosing[outer]
            self._watched[module, call] = any(fnmatchcase(name, p) for name in names for p in self._patterns)
        return self._watched[module, call]


def _innermost(frame: FrameType | None) -> FrameType | None:
    """The innermost line outside of torch; None where autograd runs nodes of its own."""
    while frame is not None and frame.f_code is not _engine_run_backward.__code__:
        if not _is_passed_over(frame.f_code):
            return frame
        frame = frame.f_back
    return None


@cache
def _is_passed_over(code: CodeType) -> bool:
    """Torch's code, ours that others call, code in no file, and what the recorder puts around the root's `forward`."""
    is_wrapper = code.co_filename == calls_file.__file__ and code.co_name == "forward"
    return is_wrapper or code.co_filename.startswith((_TORCH, _BASE, "<"))


@cache
def _below_package(code: CodeType, module: str) -> str:
    """`nemo/core/x.py`, wherever it is installed."""
    path = Path(code.co_filename)
    depth = 1 if module == "__main__" else module.count(".") + 1 + (path.stem == "__init__")
    return "/".join(path.parts[-depth:])


def _sorted_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Tensors as described, in their order; and whatever else was given, by the names of the operator's schema."""
    names = [argument.name for argument in func._schema.arguments]
    tensors, others = [], {}
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        found = [_described(tensor) for tensor in _tensors(value)]
        tensors += found
        if value is not None and not found:
            others[name] = [_plain(v) for v in value] if isinstance(value, (list, tuple)) else _plain(value)
    return tensors, others


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in arguments or results of an operator."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _described(tensor: torch.Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _plain(value: Any) -> Scalar:
    """Numbers, truth and text as they are; dtypes, devices and their like by name, anything else by its type."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    named = isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format))
    return str(value).removeprefix("torch.") if named else type(value).__name__
