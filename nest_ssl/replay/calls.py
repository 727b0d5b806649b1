"""Every call of one recorded step, fed to the candidate's own modules: forward, and backward with recorded gradients.

Calls are replayed in the order in which they ended, so that what a call calls has been replayed before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nest_ssl.base.nested import ABSENT, tensors, to_builtins
from nest_ssl.base.safe_load import first_line
from nest_ssl.record.observers.copies import same_bits
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.calls import Call
from nest_ssl.recording.evidence import Deviation, Outcome, Phase, Place, Unit
from nest_ssl.replay.deviation import compare_leaf, compare_nested
from nest_ssl.replay.frames import Done, Frame, Interception, hollow, is_complete, unchanged
from nest_ssl.replay.gradients import Gradients
from nest_ssl.replay.recorded import RecordedCalls

Precision = Callable[[], AbstractContextManager[Any]]


@dataclass
class Draft:
    """A unit in the making: others than the call itself may still have something to say about it."""

    step: int
    phase: Phase
    call: Call | None = None
    own_code: bool = False
    compared: int = 0
    deviations: list[Deviation] = field(default_factory=list)
    module: str | None = None
    order: int | None = None
    stopped: tuple[Outcome, str] | None = None  # raised or not replayed, and why
    judged_with: Draft | None = None  # the call around it, where nothing can be compared of it alone

    def add(self, compared: int, deviations: list[Deviation]) -> None:
        self.compared += compared
        self.deviations += deviations

    def unit(self) -> Unit:
        outcome, why = self.stopped or ("other bits" if self.deviations else "same bits", "")
        around = self.judged_with
        if not self.stopped and not self.compared:
            agrees = around is not None and not (around.stopped or around.deviations)
            together = (
                f"what it brings is seen only in what {around.call.name} brings" if around and around.call else ""
            )
            outcome, why = ("same bits", "") if agrees else ("not replayed", together or "nothing of it was compared")
        largest = sorted(self.deviations, key=lambda d: (d.shape is not None, -d.relative))
        return Unit(
            step=self.step,
            phase=self.phase,
            module=self.module if self.call is None else self.call.module,
            call=None if self.call is None else self.call.call,
            order=self.order if self.call is None else self.call.index,
            outcome=outcome,
            own_code=self.own_code,
            compared=self.compared,
            deviations=[] if self.stopped else largest,
            why=why,
            judged_with="" if self.compared or around is None or around.call is None else around.call.name,
        )


@dataclass
class Fed:
    """The arguments of a call as it got them, on the model's device, and the tensors to read their gradients from."""

    args: list[Any]
    kwargs: dict[str, Any]
    sources: dict[str, Tensor]  # by path, each tensor once
    tensors: dict[str, Tensor]


class CallReplay:
    """Replays the calls of one step on `root`, whose weights and buffers are those at the step's start."""

    def __init__(
        self, step: int, recorded: RecordedCalls, interception: Interception, precision: Precision, gradients: Gradients
    ) -> None:
        self.step, self.recorded, self.interception = step, recorded, interception
        self.precision, self.gradients = precision, gradients
        self.root = interception.root
        self.modules = interception.modules
        self.done: dict[int, Done] = {}
        self.forward: dict[int, Draft] = {}
        self.backward: dict[int, Draft] = {}
        self.drawn: dict[int, Draft] = {}
        self.refused: set[str] = set()  # modules with a call that was not run here
        self.sums: dict[str, Draft] = {}  # gradients of modules that were called several times, by module
        self.repeated: dict[int, set[str]] = {}  # modules that a call's own code called once more, by its index

    def run(self) -> None:
        """Replay all of them."""
        for call in self.recorded.by_end():
            self.replay_call(call)

    def drafts(self) -> Iterator[Draft]:
        """All units, once everything that may have something to say about them has said it."""
        calls = self.recorded.calls
        for index, draft in self.backward.items():
            if (
                not draft.compared
            ):  # as of a dropout in the midst of own code: the call around it hands on what it brings
                own = calls[index]
                around = [
                    i for i, d in self.backward.items() if calls[i].start < own.start < calls[i].end and d.compared
                ]
                draft.judged_with = self.backward[max(around)] if around else None
        for index in range(len(calls)):
            for table in (self.drawn, self.forward, self.backward):
                if index in table:
                    yield table[index]
        yield from self.sums.values()

    def replay_call(self, call: Call) -> None:
        own_code = any(self.recorded.inside(call).values())
        draft = self.forward[call.index] = Draft(self.step, "forward", call, own_code)
        draft.stopped = self.refusal(call)
        if draft.stopped:
            self.refused.add(call.module)
            self.done[call.index] = Done(trusted=False)
            return
        module, frame = self.modules[call.module], Frame(self.recorded, call, self.done)
        fed = self.feed(call)
        module.training = call.training
        try:
            with self.precision(), torch.set_grad_enabled(bool(call.output_grads)), self.interception.replaying(frame):
                frame.begin_stretch(call.start + 1)
                output = (module.forward if module is self.root else module)(*fed.args, **fed.kwargs)
                frame.end_stretch()
        except Exception as error:  # noqa: BLE001  whatever somebody else's module may raise
            draft.stopped = "raised", f"{type(error).__name__}: {first_line(error)}"
            self.done[call.index] = Done(trusted=False)
            return
        draft.add(*compare_nested(Address(Kind.OUTPUT, call.module, call.call), call.output, output))
        draft.add(frame.compared, frame.handed)
        if frame.draws_compared:
            self.drawn[call.index] = Draft(self.step, "draws", call, own_code, frame.draws_compared, frame.draws)
        self.repeated[call.index] = frame.repeated
        self.keep(call, fed, output)
        for skipped in frame.skipped():
            self.not_called(skipped, call)
        if call.output_grads:
            self.replay_backward(call, frame, fed, output)
        for index in frame.answered:
            self.done[index].gradients.clear()

    def refusal(self, call: Call) -> tuple[Outcome, str] | None:
        if call.module not in self.modules:
            return "not replayed", "the candidate has no such module"
        if call.module in self.interception.changed:
            return "not replayed", "the map of names makes other tensors of its weights, which goes one way alone"
        if self.modules[call.module] in self.interception.compiled:
            return "not replayed", "torch.compile makes one program of it, and its own code is not what runs"
        if call.raised:
            return "not replayed", "it ended by an exception in the reference"
        if not is_complete(call.inputs):
            return "not replayed", "an argument is an object of which only the class was kept"
        if self.recorded.lacks_state(call):
            return "not replayed", "it drew from a generator whose whole state was not kept"
        return None

    def feed(self, call: Call) -> Fed:
        """Copies of its recorded inputs; what was one tensor in several places still is."""
        device = next((parameter.device for parameter in self.root.parameters()), torch.device("cpu"))
        sources: dict[int, Tensor] = {}
        copies: dict[int, Tensor] = {}

        def copy(tensor: Tensor) -> Tensor:
            if id(tensor) not in copies:
                copied = tensor.to(device, copy=True)
                if call.output_grads and copied.is_floating_point():
                    sources[id(tensor)] = copied.requires_grad_()
                    copied = copied.clone()  # not a leaf: it may be edited in place
                copies[id(tensor)] = copied
            return copies[id(tensor)]

        args, kwargs = to_builtins(call.args, copy), to_builtins(call.kwargs, copy)
        by_path: dict[str, Tensor] = {}
        first: dict[int, str] = {}
        for path, tensor in tensors(call.inputs):
            by_path[path] = copies[id(tensor)]
            first.setdefault(id(tensor), path)
        return Fed(args, kwargs, {first[key]: source for key, source in sources.items()}, by_path)

    def keep(self, call: Call, fed: Fed, output: Any) -> None:
        found = dict(tensors(to_builtins(output, lambda tensor: tensor)))
        edited = {p: t.detach().clone() for p, t in fed.tensors.items() if t._version > 0}
        inputs = {id(tensor): path for path, tensor in fed.tensors.items()}
        self.done[call.index] = Done(
            form=hollow(output) if found.keys() == dict(tensors(call.output)).keys() else None,
            differentiable={path for path, tensor in found.items() if tensor.requires_grad},
            edited=edited,
            returned={path: inputs[id(tensor)] for path, tensor in found.items() if id(tensor) in inputs},
            trusted=not self.forward[call.index].deviations,
        )

    def not_called(self, skipped: Call, by: Call) -> None:
        for table in (self.forward, self.backward):
            if skipped.index in table and not table[skipped.index].stopped:
                table[skipped.index].stopped = "not replayed", f"the candidate's {by.name} does not call it"
        self.drawn.pop(skipped.index, None)
        self.gradients.drop(skipped.index)

    # --- backward ---

    def replay_backward(self, call: Call, frame: Frame, fed: Fed, output: Any) -> None:
        draft = self.backward[call.index] = Draft(self.step, "backward", call, self.forward[call.index].own_code)
        found, done = dict(tensors(to_builtins(output, lambda tensor: tensor))), self.done[call.index]
        roots, starts = [], []
        for path, gradient in call.output_grads.items():
            tensor = found.get(path)
            if tensor is not None and tensor.requires_grad and tensor.shape == gradient.shape:
                roots.append(tensor)
                starts.append(gradient.to(tensor.device, tensor.dtype, copy=True))
            else:
                address = Address(Kind.OUTPUT_GRADIENT, call.module, call.call, path=path)
                draft.add(1, [Deviation(place=Place.of(address), why="the candidate's output takes no gradient")])
        shares, doubted = self.backward_of(frame, draft, roots, starts, fed.sources)
        for name, share in shares.items():
            self.gradients.add(name, call.index, share)
        done.gradients = {path: source.grad for path, source in fed.sources.items() if source.grad is not None}
        self.note_passed(done, frame, fed, {root.grad_fn for root in roots})
        done.trusted &= not doubted and not draft.deviations

    def note_passed(self, done: Done, frame: Frame, fed: Fed, roots: set[Any]) -> None:
        """Whose the gradients of inputs are that the own code only handed on, as the reference's did."""
        assert frame.call is not None
        given = dict(tensors(frame.call.inputs))
        for path, gradient in done.gradients.items():
            taker = frame.only_taker({fed.tensors[path].grad_fn}, roots)
            taken = [] if taker is None else [one for _, one in tensors(self.recorded.calls[taker].inputs)]
            as_it_came = any(same_bits(one, given[path]) for one in taken)
            if taker is not None and as_it_came and self.handed_back(taker, gradient):
                done.passed[path] = self.giver(taker, gradient)

    def backward_of(
        self, frame: Frame, draft: Draft, roots: list[Tensor], starts: list[Tensor], sources: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor | None], bool]:
        """Backward through the own code of a frame; what comes back to its answers is compared.

        Returns:
            what it brings to each parameter, None where that depends on calls that are not trusted; and whether the
            gradients of any of its inputs, `sources`, do.
        """
        doubtful = any(not self.done[index].trusted for index in frame.answered)
        nodes = {root.grad_fn for root in roots}
        if roots:
            try:
                with self.interception.replaying(frame, in_backward=True):
                    torch.autograd.backward(roots, starts, retain_graph=doubtful)  # type: ignore[no-untyped-call]
            except Exception as error:  # noqa: BLE001  whatever somebody else's hook or function may raise
                draft.stopped = "raised", f"{type(error).__name__}: {first_line(error)}"
                self.gradients.take()
                return {}, True
        taken, arrived = self.gradients.take(), frame.arrived
        doubted = self.doubt(frame, sources, roots) if doubtful and roots else set()
        self.judge_arrived(frame, draft, arrived, doubted, nodes)
        shares = {name: None if ("parameter", name) in doubted else gradient for name, gradient in taken.items()}
        return shares, any(("input", path) in doubted for path in sources)

    def doubt(self, frame: Frame, sources: dict[str, Tensor], roots: list[Tensor]) -> set[Any]:
        """What depends on gradients of calls that are not trusted: inputs, parameters, places of answers."""
        kept = {path: source.grad for path, source in sources.items()}
        for source in sources.values():
            source.grad = None
        frame.arrived, frame.doubting = {}, True
        with self.interception.replaying(frame, in_backward=True):
            torch.autograd.backward(roots, [torch.zeros_like(root) for root in roots])  # type: ignore[no-untyped-call]
        found: dict[Any, Tensor | None] = {("parameter", name): g for name, g in self.gradients.take().items()}
        found |= frame.arrived
        found |= {("input", path): source.grad for path, source in sources.items()}
        for path, source in sources.items():
            source.grad = kept[path]
        return {key for key, gradient in found.items() if gradient is not None and bool(gradient.isnan().any())}

    def judge_arrived(
        self,
        frame: Frame,
        draft: Draft,
        arrived: dict[tuple[int, str], Tensor | None],
        doubted: set[Any],
        roots: set[Any],
    ) -> None:
        """Compare what came back to each answer; where one call alone brought it, that call is to blame."""
        handed = {(one.place.module, one.place.call) for one in frame.handed}
        for index, other in frame.answered.items():
            alone = frame.only_consumer(index, roots)
            if alone is not None:
                taker = self.recorded.calls[alone]
                made = {producer for producer, _ in taker.producers.values()}
                if index not in made or (taker.module, taker.call) in handed:
                    alone = None  # the own code handed it to another call than the reference's did, or something else
            paths = {path for i, path in arrived if i == index} | (other.output_grads.keys() - unchanged(other).keys())
            for path in sorted(paths):
                if (index, path) in doubted and not self.is_blamed(alone):
                    continue
                recorded, gradient = other.output_grads.get(path, ABSENT), arrived.get((index, path))
                if recorded is ABSENT and (gradient is None or not bool(gradient.any())):
                    continue  # nothing, or nothing but zeros, came back
                address = Address(Kind.OUTPUT_GRADIENT, other.module, other.call, path=path)
                deviation = compare_leaf(address, recorded, ABSENT if gradient is None else gradient)
                if deviation and alone is not None and not self.handed_back(alone, gradient):
                    alone = None  # a hook of the own code edited it on its way
                giver = None if alone is None else self.giver(alone, gradient)
                brought = draft if giver is None else self.backward.get(giver, draft)
                if deviation is None:  # then both are right: what brought it, and what handed it on
                    draft.add(int(brought is not draft), [])
                elif alone is not None and giver is not None:
                    self.done[alone].trusted = self.done[giver].trusted = False
                brought.add(1, [deviation] if deviation else [])

    def giver(self, call: int, gradient: Tensor | None) -> int:
        """The innermost call that gave it: `call` itself, or one in it that alone took that input as it came."""
        done = self.done[call]
        paths = [p for p, g in done.gradients.items() if p in done.passed and gradient is not None]
        return next((done.passed[p] for p in paths if same_bits(done.gradients[p], gradient)), call)  # type: ignore[arg-type]

    def handed_back(self, call: int, gradient: Tensor | None) -> bool:
        """Whether this is what a call gave for one of its inputs, or for all of them together."""
        given = list(self.done[call].gradients.values())
        alike = [one for one in given if gradient is not None and one.shape == gradient.shape]
        return gradient is None or any(same_bits(one, gradient) for one in alike) or len(alike) > 1

    def is_blamed(self, call: int | None) -> bool:
        """Whether it is known to be another function, and not only made of what comes from one."""
        drafts = () if call is None else (self.forward[call], self.backward.get(call))
        return any(draft.deviations for draft in drafts if draft is not None)

    # --- what is a sum over calls ---

    def judge_buffers(self, after: dict[str, Tensor]) -> None:
        """Compare the buffers of modules that were called with those after the step."""
        last = {call.module: call for call in self.recorded.calls}
        for name, (owner, own) in self.interception.buffers().items():
            call = last.get(name.rpartition(".")[0])
            if call is None or name not in after or self.forward[call.index].stopped:
                continue
            deviation = compare_leaf(of_entry(Kind.BUFFER, name), after[name], owner._buffers[own])
            again = self.called_again(name)
            self.forward[call.index if again is None else again].add(1, [deviation] if deviation else [])

    def called_again(self, name: str) -> int | None:
        """The call whose own code calls the module of that parameter or buffer once more than the reference's does."""
        calls = (index for index, modules in self.repeated.items() if any(name.startswith(f"{m}.") for m in modules))
        return next(calls, None)

    def judge_gradients(self) -> None:
        """Compare the parameters' gradients; what only one call brought is that call's, a sum is the module's."""
        for name, indexes, gradient in self.gradients.judged():
            recorded = self.gradients.recorded.get(name, ABSENT)
            address = of_entry(Kind.GRADIENT, name)
            if (recorded is None and gradient is None) or name.rpartition(".")[0] in self.refused:
                continue
            found = ABSENT if gradient is None else gradient
            deviation = compare_leaf(address, ABSENT if recorded is None else recorded, found)
            target = self.draft_of(name, indexes)
            if target is not None:
                target.add(1, [deviation] if deviation else [])

    def draft_of(self, name: str, indexes: list[int]) -> Draft | None:
        """The unit that a parameter's gradient belongs to; without a share, the last call of the module that has it.

        Who calls its module once more than the reference does has that sum to answer for.
        """
        again = self.called_again(name)
        if again in indexes:
            return self.backward.get(again)
        if len(indexes) == 1:
            return self.backward[indexes[0]]
        owner = name.rpartition(".")[0]
        if indexes:
            first = self.recorded.calls[indexes[0]]
            made = Draft(self.step, "backward", None, False, module=owner, order=first.index)
            return self.sums.setdefault(owner, made)
        while True:
            of_owner = [(i, d.stopped) for i, d in self.backward.items() if d.call and d.call.module == owner]
            # What its caller does not call is left out by that one.
            calls = [i for i, stopped in of_owner if stopped is None or stopped[0] == "raised"]
            if calls or not owner:
                return self.backward[calls[-1]] if calls else None
            owner = owner.rpartition(".")[0]
