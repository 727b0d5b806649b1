"""What a worker can be asked: to time steps, count synchronisations, repeat a step, count its arithmetic, find limits.

Orders that look inside a step (`INSIDE`) run forward and backward themselves, before training goes on.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import current_thread
from typing import Any

import soundfile
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nest_ssl.base.determinism import allow_fast_kernels, set_determinism
from nest_ssl.base.home import ROOT
from nest_ssl.base.nested import tensors
from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.bench.parts import times_of_parts
from nest_ssl.data.batch import AudioNoiseBatch
from nest_ssl.recording.writer import THREADS

RATE = 16_000
Step = Callable[[AudioNoiseBatch, int], Any]
# torch's words for a synchronisation (c10/cuda/CUDAFunctions.cpp), and for an operator without a repeatable kernel.
SYNCHRONISES, NOT_REPEATABLE = "called a synchronizing CUDA operation", "does not have a deterministic implementation"
MATRIX = 8192  # rows and columns of the product that gives the card's matrix rate
COPIED = 1 << 28  # bytes of the copy that gives the rate from device to host


def set_flags(flags: str, tf32: bool) -> None:
    """``deterministic``: as in every training. ``fast``: as with `numerics: fast`. ``free``: any kernel."""
    set_determinism()
    if flags == "fast":
        allow_fast_kernels()
        return
    if flags == "free":
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def constant_batch(device: torch.device, utterances: int, seconds: float) -> AudioNoiseBatch:
    """Utterances of the practice corpus repeated to `seconds`, each with the next one, quieter, as its noise."""
    paths = sorted((ROOT / "data" / "dummy_ssl").rglob("*.wav"))
    length = int(seconds * RATE)
    rows = []
    for number in range(utterances + 1):
        samples, _ = soundfile.read(paths[number % len(paths)], dtype="float32")
        rows.append(torch.from_numpy(samples).repeat(-(-length // len(samples)))[:length])
    audio, noise = torch.stack(rows[:-1]).to(device), 0.3 * torch.stack(rows[1:]).to(device)
    lengths = torch.full((utterances,), length, device=device)
    return AudioNoiseBatch(audio, lengths, noise, lengths.clone(), audio + noise, lengths.clone())


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- time ---------------------------------------------------------------------------------------------------------


class Moments:
    """The moments of several steps, by the device's clock or in CPU time, and the most memory held."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._kernel: list[float] = []
        self._warm = 0

    @staticmethod
    def wall() -> float:
        return time.perf_counter()

    def begin(self, warm: int) -> None:
        """From here on; the first `warm` steps are not counted."""
        self._marks, self._kernel, self._warm = [], [], warm

    def mark(self, name: str) -> None:
        if name == "start" and self._warm == sum(mark == "start" for mark, _ in self._marks):
            reset_peak(self.device)
        moment: Any = time.process_time()  # on a CPU all that the process computes: others on the machine do not count
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            moment.record()
        self._marks.append((name, moment))
        if name == "end" or not self._kernel:
            self._kernel.append(resource.getrusage(resource.RUSAGE_SELF).ru_stime)

    def end(self) -> dict[str, Any]:
        """Medians over the steps in ms: `step_ms` from end to end, `forward_ms`, `backward_ms`, `optimizer_ms`, and
        on a CPU `user_ms`, a step without what the kernel takes, most of it for new pages of memory.
        """
        wait(self.device)
        by_name = {name: [m for mark, m in self._marks if mark == name][self._warm :] for name, _ in self._marks}
        ends = [m for mark, m in self._marks if mark == "end"]
        starts = [*by_name["start"][:1], *ends[self._warm :]] if self._warm == 0 else ends[self._warm - 1 :]
        pairs = {
            "step_ms": (starts[:-1], starts[1:]),
            "forward_ms": (by_name["start"], by_name["forward"]),
            "backward_ms": (by_name["forward"], by_name["backward"]),
            "optimizer_ms": (by_name["backward"], by_name["end"]),
        }
        found: dict[str, Any] = {
            name: statistics.median(self._ms(a, b) for a, b in zip(*two, strict=True)) for name, two in pairs.items()
        }
        if not self._cuda:
            kernel = [after - before for before, after in pairwise(self._kernel[self._warm :])]
            steps = zip(*pairs["step_ms"], kernel, strict=True)
            found["user_ms"] = statistics.median(1000 * (after - before - taken) for before, after, taken in steps)
        return {**found, "peak_bytes": peak_bytes(self.device), "steps": len(starts) - 1}

    def _ms(self, before: Any, after: Any) -> float:
        return float(before.elapsed_time(after)) if self._cuda else 1000 * (after - before)


def reset_peak(device: torch.device) -> None:
    """The most memory held is counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # not Linux: the peak is the process's
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int | None:
    """The most memory held, in bytes: the device's that torch allocated, on a CPU all of the process; None unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return None


def limits(device: torch.device) -> dict[str, Any]:
    """What the card does at best: TFLOP/s of matrix products by type, and GB/s from device to host."""
    size = MATRIX if device.type == "cuda" else 256
    found: dict[str, Any] = {"matrix": size}
    kinds = {"fp32": (torch.float32, False), "tf32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    for name, (dtype, tf32) in kinds.items():
        set_flags("deterministic", tf32)
        one = torch.randn(size, size, device=device, dtype=dtype)
        seconds = _best(device, lambda one=one: torch.mm(one, one))  # type: ignore[misc]
        found[f"{name}_tflops"] = 2 * size**3 / seconds / 1e12
    there = torch.empty(COPIED if device.type == "cuda" else 1 << 20, dtype=torch.uint8, device=device)
    for name, pinned in (("pageable", False), ("pinned", True)):
        here = torch.empty(there.shape, dtype=torch.uint8, pin_memory=pinned and device.type == "cuda")
        found[f"{name}_gbs"] = there.numel() / _best(device, lambda here=here: here.copy_(there)) / 1e9  # type: ignore[misc]
    return found


def _best(device: torch.device, work: Callable[[], object], times: int = 5) -> float:
    work()
    seconds = []
    for _ in range(times):
        wait(device)
        before = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - before)
    return min(seconds)


# --- inside a step -------------------------------------------------------------------------------------------------


def synchronisations(
    model: nn.Module, step: Step, batch: AudioNoiseBatch, batch_idx: int, order: Mapping[str, Any]
) -> dict[str, Any]:
    """Where forward and backward make the host wait for the device, and which operators have no repeatable kernel.

    Returns:
        `forward` and `backward`: a list of (place, how often) each; `not_repeatable`: the operators' names.
    """
    found: dict[str, Any] = {}
    operators: set[str] = set()
    with warnings_by_place(operators) as places:
        loss = _loss(step(_copy(batch), batch_idx))
        found["forward"] = places.most_common()
        places.clear()
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss)
        found["backward"] = places.most_common()
    model.zero_grad(set_to_none=True)
    return {**found, "not_repeatable": sorted(operators)}


@contextmanager
def warnings_by_place(operators: set[str]) -> Iterator[Counter[str]]:
    """Count torch's warnings by the line of a trainer's code that they come from; a recorder's own threads may wait."""
    places: Counter[str] = Counter()

    def seen(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        if SYNCHRONISES in text and not current_thread().name.startswith(THREADS):
            places[place_in_trainer()] += 1
        elif NOT_REPEATABLE in text:
            operators.add(text.partition(NOT_REPEATABLE)[0].strip())

    mode = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else None
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = seen
        if mode is not None:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if mode is not None:
                torch.cuda.set_sync_debug_mode(mode)


def place_in_trainer() -> str:
    """The innermost line that is neither torch's nor of this file: `package/.../file.py:line`."""
    libraries = (f"{os.sep}torch{os.sep}", f"{os.sep}warnings.py", __file__)
    for frame in reversed(traceback.extract_stack()):
        if not any(part in frame.filename for part in libraries):
            parts = Path(frame.filename).parts
            roots = [i for i, part in enumerate(parts) if part in ("nemo", "nest_ssl", "lightning")]
            return f"{'/'.join(parts[roots[0] :] if roots else parts[-2:])}:{frame.lineno}"
    return "elsewhere"


def repeats(
    model: nn.Module, step: Step, batch: AudioNoiseBatch, batch_idx: int, order: Mapping[str, Any]
) -> dict[str, Any]:
    """The same step several times, from the same weights, buffers and generators: what does not repeat.

    Returns:
        `times`; by kind (`outputs` of modules, `output_gradients`, `parameter_gradients`), how many there are, how many
        vary, and the first ten that vary, in the order in which they are computed; `largest`: the largest difference
        of a parameter's gradient relative to its largest element.
    """
    states, buffers = generator_states(), {name: value.clone() for name, value in model.named_buffers()}
    first: dict[str, dict[str, Tensor]] = {}
    varying: dict[str, dict[str, float]] = {}
    for _ in range(order.get("times", 5)):
        restore_generators(states)
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        model.zero_grad(set_to_none=True)
        seen = values_of_step(model, step, batch, batch_idx)
        if not first:
            first = seen
            continue
        for kind, values in seen.items():
            for name, value in values.items():
                if (much := difference(value, first[kind][name])) != 0:
                    varying.setdefault(kind, {})[name] = much
    model.zero_grad(set_to_none=True)
    kinds = {
        kind: [len(values), len(names := [n for n in values if n in varying.get(kind, {})]), names[:10]]
        for kind, values in first.items()
    }
    largest = max(varying.get("parameter_gradients", {}).values(), default=0.0)
    return {"times": order.get("times", 5), **kinds, "largest": largest}


def values_of_step(
    model: nn.Module, step: Step, batch: AudioNoiseBatch, batch_idx: int
) -> dict[str, dict[str, Tensor]]:
    """Every module's outputs, their gradients, and the parameters' gradients, by name."""
    outputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            for path, value in tensors(output):
                key = f"{name or 'model'} {path}".strip()
                key = f"{key} again" if key in outputs else key
                outputs[key] = value.detach().clone()
                if value.requires_grad:
                    value.register_hook(partial(keep_copy, gradients, key))  # type: ignore[no-untyped-call]

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        loss = _loss(step(_copy(batch), batch_idx))
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss)
    finally:
        for hook in hooks:
            hook.remove()
    own = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"outputs": outputs, "output_gradients": gradients, "parameter_gradients": own}


def keep_copy(kept: dict[str, Tensor], name: str, value: Tensor) -> None:
    kept[name] = value.clone()


def arithmetic(
    model: nn.Module, step: Step, batch: AudioNoiseBatch, batch_idx: int, order: Mapping[str, Any]
) -> dict[str, Any]:
    """Floating-point operations of matrix products and convolutions in forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        loss = _loss(step(_copy(batch), batch_idx))
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.backward(loss)
    model.zero_grad(set_to_none=True)
    return {"flops": counter.get_total_flops()}


def parts_of_forward(
    model: nn.Module, step: Step, batch: AudioNoiseBatch, batch_idx: int, order: Mapping[str, Any]
) -> dict[str, Any]:
    """`parts`: see `parts.times_of_parts`."""
    times = order.get("times", 5)
    return {"parts": times_of_parts(model, lambda: step(_copy(batch), batch_idx), batch.audio.device, times)}


Inside = Callable[[nn.Module, Step, AudioNoiseBatch, int, Mapping[str, Any]], dict[str, Any]]
INSIDE: dict[str, Inside] = {
    "sync": synchronisations,
    "repeat": repeats,
    "flops": arithmetic,
    "parts": parts_of_forward,
}


def _copy(batch: AudioNoiseBatch) -> AudioNoiseBatch:
    """In training dither is added in place."""
    fields = (batch.audio, batch.audio_len, batch.noise, batch.noise_len, batch.noisy_audio, batch.noisy_audio_len)
    return AudioNoiseBatch(*(value.clone() for value in fields))


def _loss(output: Any) -> Tensor:
    loss: Tensor = output["loss"] if isinstance(output, dict) else output
    return loss


def difference(value: Tensor, other: Tensor) -> float:
    """0 where both have the same values, NaN being itself; else relative to the largest of `other`, or infinite."""
    if value.shape != other.shape:
        return float("inf")
    if bool(torch.all((value == other) | (value.isnan() & other.isnan()))):
        return 0.0
    if not value.is_floating_point():
        return float("inf")
    return float((value - other).abs().max().item() / (other.abs().max().item() or 1.0))
