"""The order of a replay: each recorded step by itself, from the weights that it started with."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from nest_ssl.base.rng import generator_states, restore_generators
from nest_ssl.recording.evidence import Replay, Unit, seal_of
from nest_ssl.recording.reader import Recording, StepFiles
from nest_ssl.recording.tensors import tensor_digest
from nest_ssl.replay.calls import CallReplay, Draft, Precision
from nest_ssl.replay.frames import Interception
from nest_ssl.replay.gradients import Gradients
from nest_ssl.replay.recorded import RecordedCalls


def replay(
    recording: Recording,
    module: nn.Module,
    candidate: Recording | None = None,
    *,
    steps: Sequence[int] | None = None,
    precision: Precision = nullcontext,
) -> Replay:
    """Feed every call of every module in `recording`, the reference, to the modules of those names in `module`.

    `module` is left as it was, and so are the generators of this process.

    Args:
        recording: the reference.
        module: the candidate, on its device; any model with the reference's names.
        candidate: its own recording: what the evidence is bound to, and where weights come from that the reference
            does not have.
        steps: which of the recorded steps; by default all.
        precision: a context in which the candidate's forward runs, as autocast.

    Raises:
        UserError: the recording is damaged.
    """
    started = time.perf_counter()
    units: list[Unit] = []
    interception = Interception(module)
    with _as_it_was(module, recording), interception.installed():
        for number in recording.steps if steps is None else steps:
            units += _replay_step(recording, candidate, number, interception, precision)
    known, own = ({entry.name for entry in recording.structure.modules}, dict(module.named_modules()))
    aliases = dict(module.named_modules(remove_duplicate=False))
    return Replay(
        reference=seal_of(recording.index),
        candidate=None if candidate is None else seal_of(candidate.index),
        seconds=round(time.perf_counter() - started, 2),
        precision=str(next((p.dtype for p in module.parameters()), torch.float32)).removeprefix("torch."),
        units=units,
        only_reference=sorted(known - aliases.keys()),
        only_candidate=sorted(own.keys() - known),
        sources={name: source_of(part) for name, part in aliases.items() if name in {unit.module for unit in units}},
    )


def _replay_step(
    recording: Recording, candidate: Recording | None, number: int, interception: Interception, precision: Precision
) -> list[Unit]:
    step, root = recording.step(number), interception.root
    weights = step.start_weights()
    if weights is None:
        why = "the weights at the start of the step were not recorded"
        return [Draft(number, "forward", stopped=("not replayed", why)).unit()]
    other = candidate.step(number).start_weights() if candidate and number in candidate.steps else None
    load_weights(root, {**(other or {}), **weights})
    for entry in recording.structure.modules:
        if entry.name in interception.modules:
            interception.modules[entry.name].training = entry.training
    gradients = Gradients(root, step.gradients(), _gradients_before(recording, step, number))
    calls = CallReplay(number, RecordedCalls(step), interception, precision, gradients)
    with gradients.collecting():
        calls.run()
        calls.judge_gradients()
    calls.judge_buffers(step.weights())
    return [draft.unit() for draft in calls.drafts()]


def _gradients_before(recording: Recording, step: StepFiles, number: int) -> dict[str, Tensor]:
    """What `.grad` held before backward: zeros, or what the step before had left there."""
    known, recorded = step.gradients_before() or {}, step.gradients()
    earlier = recording.step(number - 1) if number - 1 in recording.steps else None
    left = earlier.gradients() if earlier and any(content not in (None, "zero") for content in known.values()) else {}
    before: dict[str, Tensor] = {}
    for name, content in known.items():
        gradient, held = recorded.get(name), left.get(name)
        if content == "zero" and gradient is not None:
            before[name] = torch.zeros_like(gradient)
        elif content is not None and held is not None and tensor_digest(held) == content:
            before[name] = held
    return before


def load_weights(root: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put copies of parameters and buffers in the place of those of the same names, of whatever shape they are."""
    for name, parameter in root.named_parameters():
        if name in weights and weights[name].shape == parameter.shape:
            parameter.data = weights[name].to(parameter.device, parameter.dtype, copy=True)
    for name, buffer in list(root.named_buffers()):
        if name in weights:
            owner, _, own = name.rpartition(".")
            root.get_submodule(owner)._buffers[own] = weights[name].to(buffer.device, copy=True)


def source_of(module: nn.Module) -> str:
    """``file:line`` of its forward, the file below its package; empty where it has none."""
    forward = inspect.unwrap(getattr(module.forward, "__func__", module.forward))
    code = getattr(forward, "__code__", None)
    if code is None:
        return ""
    depth = (getattr(forward, "__module__", None) or "").count(".") + 1
    return f"{'/'.join(Path(code.co_filename).parts[-depth:])}:{code.co_firstlineno}"


@contextmanager
def _as_it_was(module: nn.Module, recording: Recording) -> Iterator[None]:
    """Run with as many threads as the reference; afterwards the model and the process are what they were before."""
    generators, threads = generator_states(), torch.get_num_threads()
    parameters = {parameter: parameter.data for parameter in module.parameters()}
    buffers = {part: dict(part._buffers) for part in module.modules()}
    modes = {part: part.training for part in module.modules()}
    with ExitStack() as undo:
        undo.callback(restore_generators, generators)
        undo.callback(torch.set_num_threads, threads)
        if recording.index.threads.torch:
            torch.set_num_threads(recording.index.threads.torch)
        try:
            yield
        finally:
            for parameter, data in parameters.items():
                parameter.data = data
            for part, own in buffers.items():
                part._buffers.clear()
                part._buffers.update(own)
                part.training = modes[part]
