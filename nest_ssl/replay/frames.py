"""A module's own code alone: whatever it calls answers with what the same call had returned in the recording.

Then a fault inside does not reach its container, and a container is blamed only for what it hands on, and for what it
makes of the answers. In backward an answer hands back the gradients that the call itself has for its inputs: those
that came out when that call was replayed, which it is judged for by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nest_ssl.base.nested import leaves, tensors
from nest_ssl.base.renaming import NameMap, Rename
from nest_ssl.base.rng import digest, read_states, set_state
from nest_ssl.record.observers.calls import compiled_in, positional_names
from nest_ssl.record.observers.copies import same_bits
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.calls import Call
from nest_ssl.recording.evidence import Deviation, Place
from nest_ssl.replay.deviation import compare_nested
from nest_ssl.replay.recorded import RecordedCalls, same_inputs

NOTHING = torch.zeros(0)


@dataclass
class Done:
    """What is kept of a call that was replayed, for the call that it ran in.

    Args:
        form: its output in the candidate's own classes; tensors stand as `NOTHING`.
        differentiable: the outputs that backward can start from, by path.
        edited: what it made of inputs that it edited in place, by path.
        returned: of outputs that are one of the inputs, that input's path.
        gradients: of its inputs, by path.
        passed: of inputs that its own code handed on as they came, to one call alone: the innermost such call's index.
        trusted: whether every bit of it came out, so that these gradients are the reference's.
    """

    form: Any = None
    differentiable: set[str] = field(default_factory=set)
    edited: dict[str, Tensor] = field(default_factory=dict)
    returned: dict[str, str] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    passed: dict[str, int] = field(default_factory=dict)
    trusted: bool = True


@dataclass
class Frame:
    """One call being replayed (None: the training step around all calls), and what came of it.

    Attributes:
        handed: what its own code handed on otherwise than the reference did.
        answered: indexes of the calls that were answered.
        arrived: the gradient that came back to each answer, by index and path.
        repeated: modules that its own code called more often than the reference's did.
    """

    recorded: RecordedCalls
    call: Call | None
    done: Mapping[int, Done]
    handed: list[Deviation] = field(default_factory=list)
    draws: list[Deviation] = field(default_factory=list)
    compared: int = 0
    draws_compared: int = 0
    answered: dict[int, Call] = field(default_factory=dict)
    arrived: dict[tuple[int, str], Tensor | None] = field(default_factory=dict)
    nodes: dict[Any, int] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    in_backward: bool = False
    doubting: bool = False  # see `_Answer.backward`

    def __post_init__(self) -> None:
        self.inside = self.recorded.inside(self.call)
        self._waiting = {name: list(calls) for name, calls in self.inside.items()}
        self._event = 0
        self._states: dict[str, Any] = {}
        # Something to hang every answer on: it has a gradient even if none of its inputs has one.
        self.anchor = torch.zeros((), requires_grad=True)

    def skipped(self) -> list[Call]:
        """Calls that its own code should have made, and did not."""
        outer = [call for calls in self._waiting.values() for call in calls]
        ends = {call.index: call.end for call in self.answered.values()}
        spans = [(self.recorded.calls[index].start, end) for index, end in ends.items()]
        return [c for c in outer if not any(start < c.start and c.end < end for start, end in spans)]

    def find(self, names: list[str], handed: dict[str, Any]) -> Call | None:
        """The recorded call that a call of the module of these names stands for; None where there is none."""
        for name in names:
            if self.in_backward:  # backward runs a part again: the order is another one
                again = [call for call in self.inside.get(name, ()) if same_inputs(call.inputs, handed)]
                if again:
                    return again[0]
            elif self._waiting.get(name):
                return self._waiting[name].pop(0)
        return None

    def only_consumer(self, index: int, roots: set[Any]) -> int | None:
        """The call that alone took what answer `index` returned, as it was; None where the own code took it as well."""
        return self.only_taker({node for node, made in self.nodes.items() if made == index}, roots)

    def only_taker(self, sources: set[Any], roots: set[Any]) -> int | None:
        """The same of a tensor that one of these nodes of the graph made."""
        consumers: set[int | None] = {None for root in roots if root in sources}
        waiting, seen = list(roots), set(roots)
        while waiting:
            node = waiting.pop()
            for following, _ in node.next_functions:
                if following in sources:
                    consumers.add(self.nodes.get(node))
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return consumers.pop() if len(consumers) == 1 else None

    def begin_stretch(self, event: int) -> None:
        """The call's own code goes on behind so many starts and ends: put generators where it drew from them then."""
        if self.call is not None and not self.in_backward:
            for entry in self.recorded.draws(self.call, event).values():
                set_state(entry.generator, self.recorded.state(entry).numpy().tobytes())
            self._event, self._states = event, read_states()

    def end_stretch(self) -> None:
        """Its own code pauses or ends: compare what it drew."""
        if self.call is None or self.in_backward:
            return
        entries = self.recorded.draws(self.call, self._event)
        for generator, state in ((name, each) for name, each in read_states().items() if self.recorded.has(name)):
            entry, started = entries.get(generator), self._states[generator]
            self.draws_compared += entry is not None or state != started
            if (digest(generator, state) != entry.after) if entry else (state != started):
                place = Address(Kind.DRAW, self.call.module, self.call.call, generator)
                drew = f"{entry.draws} numbers drawn" if entry else "no number drawn"
                why = f"{drew}, and {'other ones' if state != started else 'none'} by the candidate"
                self.draws.append(Deviation(place=Place.of(place), why=why))


class Interception:
    """Every module of a model answers from the record while a `Frame` is current, but the one being replayed.

    Args:
        rename: from its names to the reference's; None: they are the same.

    Attributes:
        modules: by the reference's names.
        changed: names of those with a parameter or buffer that the map reads as another tensor.
        compiled: those that torch.compile makes one program of, or of what they are in.
    """

    def __init__(self, root: nn.Module, rename: Rename | None = None) -> None:
        self.root = root
        self.frame: Frame | None = None
        self._entered = False
        modules = dict(root.named_modules(remove_duplicate=False))
        self.names = NameMap(rename, modules)
        self.modules = self.names.table(modules)
        stored = [name for name, _ in (*root.named_parameters(), *root.named_buffers())]
        owners = [name.rpartition(".")[0] for name in stored if self.names.rename.changes(name)]
        self.changed = {*self.names.names(owners)}
        self.compiled = compiled_in(root)
        # A wrapper has no name of the reference's, and is its caller's own code.
        self._names: dict[nn.Module, list[str]] = {module: [] for module in modules.values()}
        for name, module in self.modules.items():
            self._names[module].append(name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """By the reference's names, as `modules` are; what is another tensor there has no name of the reference's."""
        return self.names.tensors(dict(self.root.named_parameters()))

    def buffers(self) -> dict[str, tuple[nn.Module, str]]:
        """Each as the module that it belongs to and its name there: a step may put another tensor in its place."""
        places = {name: name.rpartition(".") for name, _ in self.root.named_buffers()}
        owned = {name: (self.root.get_submodule(owner), own) for name, (owner, _, own) in places.items()}
        return self.names.tensors(owned)

    @contextmanager
    def installed(self) -> Iterator[Interception]:
        """Modules are intercepted within; what they were before is put back."""
        for module in self._names:
            if module is not self.root:
                self._intercept(module, "_call_impl")
        own = {key: value for key, value in self.root.__dict__.items() if key == "forward"}
        self._intercept(self.root, "forward")  # trainers call it by that name, and so is it recorded
        try:
            yield self
        finally:
            for module in self._names:
                module.__dict__.pop("forward" if module is self.root else "_call_impl", None)
            self.root.__dict__.update(own)

    @contextmanager
    def replaying(self, frame: Frame, in_backward: bool = False) -> Iterator[None]:
        """The module that is called first runs its own code, or all modules answer where `frame` is of no call."""
        self.frame, self._entered = frame, frame.call is None or in_backward
        frame.in_backward = in_backward
        try:
            yield
        finally:
            self.frame = None

    def _intercept(self, module: nn.Module, method: str) -> None:
        original = getattr(module, method)
        names = self._names[module]

        def call(*args: Any, **kwargs: Any) -> Any:
            frame = self.frame
            if frame is None or not self._entered:
                self._entered = True
                return original(*args, **kwargs)
            given = dict(zip(positional_names(type(module).forward, len(args)), args, strict=True)) | kwargs
            recorded = frame.find(names, given)
            if recorded is None:  # a module that the reference does not have or did not call: its caller's own code
                again = [] if frame.in_backward else [name for name in names if name in frame.inside]
                frame.repeated.update(again)
                self.frame = None if again else frame  # what is in it has answered for its own call already
                try:
                    return original(*args, **kwargs)
                finally:
                    self.frame = frame
            frame.end_stretch()
            output = answer(frame, recorded, given)
            frame.begin_stretch(recorded.end + 1)
            return output

        module.__dict__[method] = call


def answer(frame: Frame, call: Call, given: dict[str, Any]) -> Any:
    """What `call` had returned, in the classes of the candidate's own output; `given` is compared with what it got."""
    handed = renamed(given, call.inputs)
    common = {name: value for name, value in call.inputs.items() if name in handed or isinstance(value, Tensor)}
    address = Address(Kind.INPUT, call.module, call.call)
    for name, value in common.items():
        slot = Address(Kind.INPUT, address.module, address.call, name)
        compared, deviations = compare_nested(slot, value, handed.get(name))
        if not frame.in_backward:
            frame.compared += compared
            frame.handed += deviations
    frame.answered[call.index] = call
    done = frame.done.get(call.index, Done())
    given_tensors = dict(tensors(handed))
    device = next((tensor.device for tensor in given_tensors.values()), torch.device("cpu"))
    outputs = {path: tensor.to(device, copy=True) for path, tensor in tensors(call.output)}
    for path, name in unchanged(call).items():
        if name in given_tensors and same_bits(given_tensors[name], call_tensor(call, path)):
            outputs[path] = given_tensors[name]  # it is the same tensor, with all the gradients that this one gets
    made = {path: t for path, t in outputs.items() if not any(t is other for other in given_tensors.values())}
    linked = [path for path in made if path in call.output_grads or path in done.differentiable]
    inputs = {path: tensor for path, tensor in given_tensors.items() if tensor.is_floating_point()}
    dirty = {path: new.to(device) for path, new in done.edited.items() if path in inputs}
    if linked:
        results = _Answer.apply(  # type: ignore[no-untyped-call]
            frame, call.index, done, list(inputs), linked, [made[path] for path in linked], dirty, frame.anchor,
            *inputs.values(),
        )  # fmt: skip
        outputs |= dict(zip(linked, results, strict=False))
        frame.nodes |= {results[0].grad_fn: call.index} if results[0].grad_fn is not None else {}
    else:
        for path, new in dirty.items():
            inputs[path].data.copy_(new)
    return refill(done.form, call.output, outputs)


def unchanged(call: Call) -> dict[str, str]:
    """Of outputs that are the very tensor that went in, as with dropout of rate 0: that input's path."""
    inputs = {id(tensor): path for path, tensor in tensors(call.inputs)}
    return {path: inputs[id(tensor)] for path, tensor in tensors(call.output) if id(tensor) in inputs}


def call_tensor(call: Call, path: str) -> Tensor:
    return dict(tensors(call.output))[path]


def renamed(given: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """Arguments under the names that they have in the record; those of other names by their order."""
    unknown = [name for name in given if name not in recorded and given[name] is not None]
    unclaimed = [name for name in recorded if name not in given and recorded[name] is not None]
    names = dict(zip(unknown, unclaimed, strict=False))
    return {names.get(name, name): value for name, value in given.items()}


class _Answer(torch.autograd.Function):
    """The recorded outputs, as a function of what was handed to the call."""

    @staticmethod
    def forward(
        ctx: Any, frame: Frame, index: int, done: Done, inputs: list[str], linked: list[str], outputs: list[Tensor],
        dirty: dict[str, Tensor], anchor: Tensor, *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.frame, ctx.index, ctx.done, ctx.inputs, ctx.linked = frame, index, done, inputs, linked
        ctx.shapes = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        ctx.set_materialize_grads(False)
        by_path = dict(zip(inputs, tensors, strict=True))
        for path, new in dirty.items():
            by_path[path].copy_(new)
        results = [by_path[done.returned[p]] if done.returned.get(p) in dirty else o
                   for p, o in zip(linked, outputs, strict=True)]  # fmt: skip
        further = [by_path[path] for path in dirty if not any(by_path[path] is result for result in results)]
        ctx.mark_dirty(*(by_path[path] for path in dirty))
        return (*results, *further)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """The gradients of the inputs are those of the call's own replay, whatever arrives.

        While `doubting`, they are NaN where the call is not trusted (or was not replayed, so that none are known) and 0
        elsewhere: whatever they touch becomes NaN.
        """
        frame, done = ctx.frame, ctx.done
        for path, gradient in zip(ctx.linked, gradients, strict=False):
            frame.arrived[ctx.index, path] = gradient
        back = [done.gradients.get(path) for path in ctx.inputs]
        if frame.doubting and done.trusted:
            back = [None if gradient is None else torch.zeros_like(gradient) for gradient in back]
        elif frame.doubting:
            back = [torch.full(shape, torch.nan, dtype=dtype, device=device) for shape, dtype, device in ctx.shapes]
        return (None,) * 8 + tuple(None if g is None else g.clone() for g in back)


def hollow(output: Any) -> Any:
    """The same nesting, a mapping as a dict, its tensors replaced by `NOTHING`."""
    if isinstance(output, Tensor):
        return NOTHING
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*map(hollow, output))
    if isinstance(output, (list, tuple)):
        return type(output)(map(hollow, output))
    if isinstance(output, Mapping):
        return {key: hollow(value) for key, value in output.items()}
    if is_dataclass(output) and not isinstance(output, type):
        return replace(output, **{f.name: hollow(getattr(output, f.name)) for f in fields(output) if f.init})
    return output


def refill(form: Any, recorded: Any, outputs: dict[str, Tensor], path: str = "") -> Any:
    """`form` with the `outputs` in the places of its tensors; without a form that fits, tuples."""

    def inside(key: Any) -> str:
        return f"{path}.{key}" if path else str(key)

    if isinstance(recorded, Tensor):
        return outputs[path]
    if isinstance(recorded, dict):
        if is_dataclass(form) and not isinstance(form, type):
            made = {f.name: refill(getattr(form, f.name), recorded[f.name], outputs, inside(f.name))
                    for f in fields(form) if f.init and f.name in recorded}  # fmt: skip
            return replace(form, **made)
        known = form if isinstance(form, Mapping) else {}
        return {key: refill(known.get(key), value, outputs, inside(key)) for key, value in recorded.items()}
    if isinstance(recorded, (list, tuple)):
        known_items = form if isinstance(form, (list, tuple)) and len(form) == len(recorded) else [None] * len(recorded)
        items = [refill(known_items[i], value, outputs, inside(i)) for i, value in enumerate(recorded)]
        if isinstance(form, tuple) and hasattr(form, "_fields"):
            return type(form)(*items)
        return items if isinstance(form, list) else tuple(items)
    return recorded


def is_complete(value: Any) -> bool:
    """Whether nothing in it is an object of which only the class was kept."""
    return all(path.rpartition(".")[2] != "__repr__" for path, _ in leaves(value))
