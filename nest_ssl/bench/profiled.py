"""Where one training step takes its time, by torch's profiler: by kind of operator, and by part of the model.

On a CPU backward runs in the thread that trains, so one list of operators, in the order of their start, has the whole
step. Marks among them say which phase and which part begins; what runs backward belongs to the part whose forward made
its node of autograd's graph, by the number that both have.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

MARK, PHASE = "part: ", "phase: "
NODE = "autograd::engine::evaluate_function: "  # how the profiler names what runs a node of autograd's graph
WHOLE_STEP = "Optimizer."  # its event: Lightning runs forward and backward within the optimizer's step
# Which phase a moment of `Moments` begins.
PHASES = {"start": "forward", "forward": "backward", "backward": "optimizer", "end": ""}
BETWEEN, REST, LAYERS = "between operators (Python)", "rest", r"encoder\.layers\.\d+\."
# By kind, of the names of ATen's operators. The first kind that fits; of features and codes all operators are together,
# and all of the optimizer's step, for compiled loops are no operators.
KINDS = {
    "matrix products": r"(add|b|badd|sp)?mm|baddbmm|mv|dot",
    "convolutions": r".*conv(olution)?(\d?d)?(_.*)?",
    "random draws": r"(bernoulli|normal|uniform|random|rand|randn|randint|randperm).*",
    "norms": r".*(layer|batch)_norm.*",
    "softmax": r".*softmax.*",
    "activations": r"(silu|glu|relu|threshold|clamp_min|sigmoid).*",
    "new memory, with its filling": r"(empty|resize|fill|zero|new_|zeros|ones|full).*",
    "copies and layout": r"(copy|clone|contiguous|reshape|cat|stack|constant_pad|pad|to|index|gather|scatter|where|"
                         r"repeat|roll|t|transpose|permute|view|unsafe_view|expand|unsqueeze|squeeze|select|slice|"
                         r"narrow|split|detach|alias|unbind|chunk|as_strided|flatten|unflatten)(_.*)?",
    "sums and searches": r"(sum|mean|norm|linalg_vector_norm|cumsum|any|all|max|min|a?max|argm..|topk|sort|nll_loss|eq|"
                         r"lt|ge|gt|nonzero|unique|local_scalar_dense|is_nonzero|item)(_.*)?",
    "other elementwise": r"(add|sub|rsub|mul|div|addcmul|addcdiv|masked_fill|masked_select|lerp|exp|log|pow|sqrt|rsqrt|"
                         r"square|neg|abs|bitwise|logical|floor|ceil|ne|le|sin|cos|arange|tri.)(_.*)?",
}  # fmt: skip
# By part: the modules that begin it, or the port's branches, which are one function each where no hook looks.
BEGINS = {
    "features": r"preprocessor",
    "quantizer": r"quantizer",
    "mask": r"mask_processor",
    "subsampling and positions": r"encoder\.pre_encode",
    "decoder and loss": r"decoder",
}
BEGINS_IN_LAYERS = {
    "feed-forward": LAYERS + r"norm_feed_forward[12]",
    "attention": LAYERS + r"norm_self_att",
    "convolution": LAYERS + r"norm_conv",
}
BRANCHES = {"FeedForwardBranch": "feed-forward", "AttentionBranch": "attention", "ConvolutionBranch": "convolution"}
TOGETHER = {"features": "features", "quantizer": "codes of the quantizer"}  # parts whose operators are one kind

Found = dict[str, dict[str, float]]  # milliseconds by kind or part, and by phase


class Profiled:
    """Watches the step that runs while it is open.

    Args:
        model: of either trainer, with NeMo's names.
        inside: look into its layers by hooks; else by the names of the port's branches, which hooks would open.
    """

    def __init__(self, model: nn.Module, inside: bool) -> None:
        patterns = {**BEGINS, **(BEGINS_IN_LAYERS if inside else {})}
        self._handles = [
            module.register_forward_pre_hook(lambda *_, part=part: _mark(MARK + part))
            for name, module in model.named_modules()
            for part, pattern in patterns.items()
            if re.fullmatch(pattern, name)
        ]
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._begun: dict[str, float] = {}  # CPU time at which each phase began

    def mark(self, moment: str) -> None:
        """Of the names that `Moments` takes."""
        self._begun[PHASES[moment]] = time.process_time()
        _mark(PHASE + PHASES[moment])

    def __enter__(self) -> Profiled:
        self._profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._profile.stop()
        for handle in self._handles:
            handle.remove()

    def found(self) -> dict[str, Found]:
        """See `totals`."""
        computed = {phase: 1000 * (self._begun[end] - self._begun[phase]) for phase, end in pairwise(PHASES.values())}
        return totals(self._profile.events() or (), computed)  # type: ignore[no-untyped-call]


def totals(events: Iterable[Any], computed: Mapping[str, float]) -> dict[str, Found]:
    """Milliseconds of a step: `kinds` and `parts`, each by phase.

    Args:
        computed: CPU time of each phase, which is shared out among its operators as they took it by the clock, which
            others on the machine make longer.
    """
    all_of_it = list(taken(events))
    by_clock = {phase: sum(took for of, *_, took in all_of_it if of == phase) for phase in computed}
    found: dict[str, Found] = {"kinds": {}, "parts": {}}
    for phase, part, kind, took in all_of_it:
        for of, key in (("kinds", kind), ("parts", part)):
            by_phase = found[of].setdefault(key, {})
            by_phase[phase] = by_phase.get(phase, 0.0) + took * computed[phase] / by_clock[phase]
    return found


def medians(steps: Sequence[Mapping[str, Found]]) -> dict[str, Found]:
    """Of each number of several steps."""
    made: dict[str, Found] = {of: {} for of in steps[0]}
    places = {(of, key, phase) for step in steps for of in made for key, took in step[of].items() for phase in took}
    for of, key, phase in places:
        numbers = [step[of].get(key, {}).get(phase, 0.0) for step in steps]
        made[of].setdefault(key, {})[phase] = statistics.median(numbers)
    return made


def _mark(name: str) -> None:
    with record_function(name):
        pass


def taken(events: Iterable[Any]) -> Iterator[tuple[str, str, str, float]]:
    """Phase, part and kind of every operator of a step, and the milliseconds that it took without those that it called;
    of each phase also what no operator took.

    Args:
        events: of torch's profiler (`FunctionEvent`), in the order of their start, with marks among them.
    """
    phase, part, began, within = "", REST, 0.0, 0.0
    made_in: dict[int, str] = {}  # the part that made a node of autograd's graph, by its number
    for event in events:
        if event.name.startswith(PHASE):
            if phase:
                between = (event.time_range.start - began) / 1e3 - within
                part, kind = (phase, phase) if phase == "optimizer" else (REST, BETWEEN)
                yield phase, part, kind, between
            phase, part, began, within = event.name.removeprefix(PHASE), REST, event.time_range.start, 0.0
            continue
        if not phase or event.name.startswith(WHOLE_STEP):
            continue
        took = event.self_cpu_time_total / 1e3
        within += took
        if phase == "optimizer":
            yield phase, phase, phase, took
            continue
        if phase == "forward":
            part = event.name.removeprefix(MARK) if event.name.startswith(MARK) else BRANCHES.get(event.name, part)
            made_in |= {event.sequence_nr: part} if event.sequence_nr >= 0 else {}
        elif event.name.startswith(NODE):
            part = made_in.get(event.sequence_nr, REST)
        yield phase, part, TOGETHER.get(part) or kind_of(event.name), took


def kind_of(name: str) -> str:
    """The kind of an operator, by its name."""
    base = name.removeprefix("aten::").strip("_")
    fits = (kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, base) and name.startswith("aten::"))
    return next(fits, REST)
