"""Copies of what hooks see: taken at once, for the next in-place edit overwrites it, and each content once.

Of a tensor on a device the copy is made there, at the speed of its memory, and the host waits for nothing: whether a
tensor that is seen again holds what it did is asked of the device, and known some hooks later. The copies go to the
disk behind the step, see `recording.saving`. Where the device has no room for them, they come to the CPU at once.
What a CPU computes is handed on as soon as it is copied, see `recording.spill`: a step may be larger than the memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nest_ssl.base.memory import lies_plain, same_bytes
from nest_ssl.base.nested import tensors, to_builtins
from nest_ssl.recording.calls import Call, Producer

_INTEGER_OF = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
_NOTHING = torch.empty(0)
AT_ONCE = 64  # answers that are asked of the device together
Doubt = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # a later copy, an earlier one, and whether their bits differ


class Copies:
    """Keeps values as builtins with tensors that nothing changes, and remembers which call returned which of them.

    One module's output is the next one's input, so a tensor that is seen again is kept again only if its bits have
    changed since. They are compared each time: an address is reused after a tensor dies, and an edit through ``.data``
    leaves no trace in a tensor's version. Comparing costs less than copying, which also has to find the memory.

    Args:
        put: is given every copy of what lies on a CPU; may move its bytes elsewhere.
    """

    def __init__(self, put: Callable[[torch.Tensor], None] | None = None) -> None:
        self._put = put
        self._kept: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
        self._returned: dict[int, tuple[torch.Tensor, Producer]] = {}
        self._room: int | None = None  # bytes that copies may still take on the device; None: not asked yet
        self._doubts: list[Doubt] = []
        self._asked: list[tuple[list[Doubt], Answer]] = []
        self._same: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # later copies that are an earlier one

    def keep(self, value: Any) -> Any:
        """`value` as nested builtins, its tensors copied; those that hold what was kept before are the same objects,
        at once or, on a device, when they are `settled`."""
        return to_builtins(value, self.copy)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        seen = self._kept.get(id(tensor))
        kept = seen[1] if seen is not None and seen[0]() is tensor else None
        roomy = remote(tensor) and self._has_room(tensor)
        asks = kept is not None and roomy and kept.device == tensor.device and alike(tensor, kept)
        if kept is not None and not asks and same_bits(tensor, kept):
            return kept
        copied = tensor.detach().clone() if roomy else copy_to_cpu(tensor)
        if roomy and self._room is not None:
            self._room -= copied.numel() * copied.itemsize
        if kept is not None and asks:
            self._doubts.append((copied, kept, unlike(copied, kept)))
            if len(self._doubts) == AT_ONCE:
                self._ask()
        self._kept[id(tensor)] = weakref.ref(tensor), copied
        if self._put and not remote(tensor):
            self._put(copied)
        return copied

    def settled(self, calls: Sequence[Call]) -> None:
        """Wait for what was asked of the device, and put in these calls one tensor where the bits are the same."""
        self._ask()
        while self._asked:
            self._learn()
        for call in calls if self._same else ():
            call.args, call.kwargs = (to_builtins(given, self._first) for given in (call.args, call.kwargs))
            call.output, call.output_grads = (to_builtins(v, self._first) for v in (call.output, call.output_grads))

    def trace(self, calls: Sequence[Call]) -> None:
        """Note for the inputs of each call which call returned them last; starts and ends are numbered together."""
        moments = [(call.start, False, call) for call in calls] + [(call.end, True, call) for call in calls]
        for _, ends, call in sorted(moments, key=lambda moment: moment[:2]):
            if not ends:
                call.producers = self.producers(call.inputs)
            elif not call.raised:
                self.returned(call.output, call.index)

    def returned(self, kept: Any, call: int) -> None:
        """Note that `kept`, from `keep`, is what the call with index `call` returned."""
        for path, tensor in tensors(kept):
            self._returned[id(tensor)] = tensor, (call, path)  # with the tensor, or its address could be reused

    def producers(self, kept: dict[str, Any]) -> dict[str, Producer]:
        """For each tensor in `kept`, by its path, the call that returned it last, if any did."""
        return {path: self._returned[id(t)][1] for path, t in tensors(kept) if id(t) in self._returned}

    def _has_room(self, tensor: torch.Tensor) -> bool:
        if self._room is None:
            self._room = room(tensor.device)
        return tensor.numel() * tensor.itemsize <= self._room

    def _ask(self) -> None:
        """Ask of the device what is in doubt, and learn what it has answered meanwhile."""
        if self._doubts:
            device = self._doubts[0][2].device
            flags = torch.stack([differ.to(device) for *_, differ in self._doubts])
            self._asked.append((self._doubts, Answer(flags)))
            self._doubts = []
        while self._asked and self._asked[0][1].is_there():
            self._learn()

    def _learn(self) -> None:
        doubts, answer = self._asked.pop(0)
        for (later, earlier, _), differ in zip(doubts, answer.wait().tolist(), strict=True):
            if not differ:
                self._room = (self._room or 0) + later.numel() * later.itemsize
                self._same[id(later)] = later, earlier
                later.data = earlier  # its own memory is free again

    def _first(self, tensor: torch.Tensor) -> torch.Tensor:
        while id(tensor) in self._same:
            tensor = self._same[id(tensor)][1]
        return tensor


class Unkept(Copies):
    """Nothing of what hooks see: which calls there were is known, and no more."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return _NOTHING

    def returned(self, kept: Any, call: int) -> None:
        """Who made what is not noted."""


class Answer:
    """What a device is working out, on its way to the CPU."""

    def __init__(self, found: torch.Tensor) -> None:
        self._here, self._event = found, None
        if found.is_cuda:
            self._here = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self._here.copy_(found, non_blocking=True)
            self._event = torch.cuda.current_stream(found.device).record_event()

    def is_there(self) -> bool:
        return self._event is None or bool(self._event.query())

    def wait(self) -> torch.Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._here


def remote(tensor: torch.Tensor) -> bool:
    """Whether it lies on a device that computes on while the host goes on."""
    return tensor.device.type == "cuda"


def room(device: torch.device) -> int:
    """Bytes that copies of a step may take there: a quarter of what is free, for the step may yet grow."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 4
    with suppress(OSError, ValueError, StopIteration):  # not Linux: nothing is known
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
        limit, used = (Path("/sys/fs/cgroup/memory." + name) for name in ("max", "current"))
        if limit.is_file() and (most := limit.read_text().strip()) != "max":
            free = min(free, int(most) - int(used.read_text()))
        return max(0, free) // 4
    return 0


def holder(values: Iterable[Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """How `values`, of which tensors are held, are held while they are written.

    Returns:
        a function of a tensor: detached, and what lies on a device copied there, as training goes on meanwhile; or, if
        the device has no room for four times as much, to the CPU.
    """
    there = [value for value in values if isinstance(value, torch.Tensor) and remote(value)]
    roomy = not there or sum(tensor.numel() * tensor.itemsize for tensor in there) <= room(there[0].device)

    def held(tensor: torch.Tensor) -> torch.Tensor:
        if not remote(tensor):
            return tensor.detach()
        return tensor.detach().clone() if roomy else copy_to_cpu(tensor)

    return held


def copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A detached copy that later in-place edits do not reach."""
    return tensor.detach().to("cpu", copy=True)


def alike(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether their elements can be compared one by one."""
    return tensor.shape == kept.shape and tensor.dtype == kept.dtype and tensor.layout == torch.strided


def same_bits(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether `tensor`, wherever it lives, holds what `kept` does; NaN equals itself, and -0 is not 0."""
    if not alike(tensor, kept):
        return False
    if lies_plain(tensor) and lies_plain(kept):
        return same_bytes(tensor, kept)
    return torch.equal(_integers(tensor.detach().to(kept.device)), _integers(kept))


def unlike(tensor: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """As not `same_bits`, but where the tensors lie: the host does not wait for it."""
    if not alike(tensor, kept):
        return torch.tensor(True)
    return torch.ne(_integers(tensor.detach().to(kept.device)), _integers(kept)).any()


def _integers(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.resolve_conj().resolve_neg()  # a view of bits has no room for "to be negated"
    real = torch.view_as_real(plain) if plain.is_complex() else plain
    return real.view(_INTEGER_OF[real.itemsize]) if real.is_floating_point() else real
