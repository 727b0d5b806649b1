"""The order of a replay: each recorded step by itself, from the weights that it started with."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from nest_ssl.base.errors import UserError
from nest_ssl.base.renaming import Rename
from nest_ssl.recording.evidence import Replay, Unit, seal_of
from nest_ssl.recording.index import of_another_kind
from nest_ssl.recording.reader import Recording
from nest_ssl.recording.step_files import StepFiles
from nest_ssl.recording.tensors import tensor_digest
from nest_ssl.replay.calls import CallReplay, Draft, Precision
from nest_ssl.replay.frames import Interception
from nest_ssl.replay.gradients import Gradients
from nest_ssl.replay.loop import LoopReplay
from nest_ssl.replay.model_state import as_it_was, load_weights
from nest_ssl.replay.recorded import RecordedCalls

Loops = Mapping[int, LoopReplay]  # by step


def replay(
    recording: Recording,
    module: nn.Module,
    candidate: Recording | None = None,
    *,
    steps: Sequence[int] | None = None,
    precision: Precision = nullcontext,
    run_loop: Callable[[Loops], None] | None = None,
    rename: Rename | None = None,
) -> Replay:
    """Feed every call of every module in `recording`, the reference, to the modules of those names in `module`.

    `module` is left as it was, and so are the generators of this process.

    Args:
        recording: the reference.
        module: the candidate, on its device; any model with the reference's names, or with `rename`.
        candidate: its own recording, under the reference's names: what the evidence is bound to, and where weights come
            from that the reference does not have.
        steps: which of the recorded steps; by default all.
        precision: a context in which the candidate's forward runs, as autocast.
        run_loop: runs the candidate's training loop over the steps, see `LoopReplay`; None: calls alone are replayed.
        rename: from the names of the candidate's modules to the reference's, see `compare.name_map`.

    Raises:
        UserError: the recording is damaged, or is of some modules alone.
    """
    refuse_what_has_no_calls(recording)
    started = time.perf_counter()
    interception, units = Interception(module, rename), list[Unit]()
    replayed, loops = dict[int, CallReplay](), dict[int, LoopReplay]()
    with as_it_was(module, recording.index.threads.torch):
        for number in recording.steps if steps is None else steps:
            weights = recording.step(number).start_weights()
            if weights is None:
                why = "the weights at the start of the step were not recorded"
                units.append(Draft(number, "forward", stopped=("not replayed", why)).unit())
                continue
            other = candidate.step(number).start_weights() if candidate and number in candidate.steps else None
            with interception.installed():
                replayed[number] = replay_calls(
                    recording, number, {**(other or {}), **weights}, interception, precision
                )
            loops[number] = LoopReplay(recording, replayed[number], {**(other or {}), **weights})
        if run_loop is not None:
            run_loop(loops)
    for number, calls in replayed.items():
        drafts = [*calls.drafts(), *(loops[number].drafts.values() if run_loop else ())]
        units += [draft.unit() for draft in drafts]
    known, parts = {entry.name for entry in recording.structure.modules}, interception.modules
    return Replay(
        reference=seal_of(recording.index),
        candidate=None if candidate is None else seal_of(candidate.index),
        seconds=round(time.perf_counter() - started, 2),
        precision=str(next((p.dtype for p in module.parameters()), torch.float32)).removeprefix("torch."),
        units=units,
        only_reference=sorted(known - parts.keys()),
        only_candidate=sorted({*interception.names.names(dict(module.named_modules()))} - known),
        sources={name: source_of(part) for name, part in parts.items() if name in {unit.module for unit in units}},
    )


def replay_calls(
    recording: Recording, number: int, weights: dict[str, Tensor], interception: Interception, precision: Precision
) -> CallReplay:
    """Replay all calls of one step; interception has to be installed.

    Raises:
        UserError: the recording is damaged, or is of some modules alone.
    """
    refuse_what_has_no_calls(recording)
    step = recording.step(number)
    load_weights(interception, weights)
    facts = step.facts()
    modes = {entry.name: entry.training for entry in recording.structure.modules} | (facts.training if facts else {})
    for name, mode in modes.items():
        if name in interception.modules:
            interception.modules[name].training = mode
    gradients = Gradients(interception.parameters(), step.gradients(), gradients_before(recording, step, number))
    own = next((parameter.device.type for parameter in interception.root.parameters()), "")
    other_device = of_another_kind(own, recording.index.device.type)
    calls = CallReplay(number, RecordedCalls(step, other_device), interception, precision, gradients)
    with gradients.collecting():
        calls.run()
        calls.judge_gradients()
    calls.judge_buffers(step.weights())
    return calls


def refuse_what_has_no_calls(recording: Recording) -> None:
    """What was not recorded would be run, and be blamed for being called.

    Raises:
        UserError: the recording is of some modules alone, or of no tensors.
    """
    level = recording.index.level
    if level is not None:
        whole = level.record in ("digest", "operators")
        what = f"a recording of {level.record}" if whole else "a recording of some modules"
        fix = "Record all modules: record=modules, without include and exclude."
        raise UserError(f"{what} cannot be replayed", str(recording.path), fix)


def gradients_before(recording: Recording, step: StepFiles, number: int) -> dict[str, Tensor]:
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


def source_of(module: nn.Module) -> str:
    """``file:line`` of its forward, the file below its package; empty where it has none."""
    forward = inspect.unwrap(getattr(module.forward, "__func__", module.forward))
    code = getattr(forward, "__code__", None)
    if code is None:
        return ""
    depth = (getattr(forward, "__module__", None) or "").count(".") + 1
    return f"{'/'.join(Path(code.co_filename).parts[-depth:])}:{code.co_firstlineno}"
