"""What follows from the headline, and what it cannot explain.

A difference is explained when something that it depends on differs already. What differs although everything recorded
that it depends on is the same was born on its own, and mending the headline will not mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nest_ssl.compare.draws import FORWARD, is_random
from nest_ssl.compare.localise import StepResult, birthplace
from nest_ssl.compare.order import explained_draw, in_order, phase
from nest_ssl.compare.result import BORN, Difference, Tally
from nest_ssl.recording.stages import FETCH, FIT_START, MODEL_CONSTRUCTION, VALIDATION

SHOWN = 3
# Phases (see `order.phase`) whose draws make the batch, and those whose draws the forward takes part in.
_BEFORE_BATCH = (FIT_START, "before_first_batch", VALIDATION, FETCH, "batch_ready")
_BEFORE_BACKWARD = (*_BEFORE_BATCH, MODEL_CONSTRUCTION, "before_model", "after_model", FORWARD, "forward_done")
_UNITS = {  # one, several
    "structure": ("entry of the structure", "entries of the structure"),
    "initial_weights": ("value before the first step", "values before the first step"),
    "batch": ("field of the batch", "fields of the batch"),
    "draws": ("stage of random draws or random state", "stages of random draws or random states"),
    "forward": ("call or output of the forward", "calls and outputs of the forward"),
    "gradients": ("gradient", "gradients"),
    "weights": ("value after the step", "values after the step"),
}


def what_follows(first: Difference, run: Mapping[str, Tally], results: Sequence[StepResult]) -> list[str]:
    """Counts of what differs after `first`, a line a step."""
    if first.place.rung == "contract":
        return []
    by_step: dict[int | None, list[str]] = {}
    seen = False
    for tally in in_order(first, run, results):
        own = first in tally.differences
        seen = seen or own
        count = tally.differing + tally.missing_reference + tally.missing_candidate - own
        if seen and count > 0:
            by_step.setdefault(tally.step, []).append(_count(tally, count))
    later = [step for step in by_step if step is not None and step != _step_of(first, by_step)]
    told = {step: ", ".join(parts) for step, parts in by_step.items() if step not in later}
    lines = [text if step is None else f"at step {step}: {text}" for step, text in told.items()]
    if later:
        lines.append(f"differences at step{'s' if len(later) > 1 else ''} {', '.join(map(str, later))}")
    return lines


def _step_of(first: Difference, by_step: dict[int | None, list[str]]) -> int | None:
    """The step to tell in full: that of the headline, or the first recorded one."""
    steps = [step for step in by_step if step is not None]
    return first.place.step if first.place.step is not None else min(steps, default=None)


def _count(tally: Tally, count: int) -> str:
    if tally.rung == "loss":
        largest = [d.metrics.max_abs for d in tally.differences if d.metrics and d.metrics.max_abs is not None]
        return f"the loss by {max(largest):.1e}" if largest else "the loss"
    return f"{count:,} {_UNITS[tally.rung][count > 1]}"


def not_explained(first: Difference, found: Sequence[Difference], results: Sequence[StepResult]) -> list[str]:
    """What differs although nothing recorded that it depends on does, apart from `first`; `found` in causal order."""
    if first.place.rung == "contract":
        return []
    initial = [difference for difference in found if difference.place.rung == "initial_weights"]
    random = [difference for difference in found if is_random(difference)]
    lines = _other_classes(first, found)
    lines += _initial_weights(first, initial, random)
    lines += _batches(first, [d for d in found if d.place.rung == "batch"], random)
    lines += _random_draws(first, random, results)
    changed = {d.place.module for d in initial}
    step = first.place.step if first.place.step is not None else min((r.step for r in results), default=None)
    for result in results:
        if result.step == step and result.rank == first.place.rank:
            lines += _forward_births(first, result, found)
            lines += _loss(first, result)
            lines += _gradient_births(first, result, changed)
            lines += _update_births(first, result, changed)
    return lines


def _other_classes(first: Difference, found: Sequence[Difference]) -> list[str]:
    """What a module is made of follows from nothing that was computed before it."""
    classes = [d for d in found if d.place.rung == "structure" and d.place.tensor == "class" and d is not first]
    return [] if first.place.rung == "structure" else _line("modules are of another class", classes)


def _initial_weights(first: Difference, found: list[Difference], random: list[Difference]) -> list[str]:
    """Later initial values may follow from an earlier one if the random stream was left in another state."""
    shifted = any(d.place.step is None for d in random)
    if first.place.rung not in ("structure", "initial_weights") or shifted:
        return []
    others = [d for d in found if d is not first and d.place.module != first.place.module]
    return _line("initial values in other modules differ, though the random streams do not say why", others)


def _batches(first: Difference, found: list[Difference], random: list[Difference]) -> list[str]:
    fields = [d for d in found if d is not first]
    if first.place.rung == "batch":
        fields = [d for d in fields if d.place.step == first.place.step]
        return _line("other fields of the same batch differ", fields)
    # What a batch is made of is drawn as it is fetched; its order may have been drawn at the start of the epoch.
    made = [-1 if d.place.step is None else d.place.step for d in random if phase(d) in _BEFORE_BATCH]
    fields = [d for d in fields if not made or (d.place.step or 0) < min(made)]
    return _line("fields of a batch differ, which the model has no part in", fields)


def _random_draws(first: Difference, random: list[Difference], results: Sequence[StepResult]) -> list[str]:
    """The first random draw that differs, where nothing that differs before it in its own call can have led to it."""
    if not random or is_random(first) or first.place.rung in ("structure", "batch"):
        return []
    place = random[0].place
    if first.place.rung == "initial_weights" and place.step is None:
        return []
    result = next((r for r in results if (r.step, r.rank) == (place.step, place.rank)), None)
    if result and place.step == first.place.step and explained_draw(random[0], first, result):
        return []
    return _line(f"random draws differ on their own at step {place.step}, in", random[:1])


def _forward_births(first: Difference, result: StepResult, found: Sequence[Difference]) -> list[str]:
    """Births apart from the headline's; without a ledger, other random states excuse whatever may have drawn."""
    if not result.draws and any(is_random(d) and phase(d) in _BEFORE_BACKWARD for d in _until(result, found)):
        return []
    rebuilt = {d.place.module for d in found if d.place.rung == "structure"}
    blamed = {first.place.module, birthplace(first, result), *rebuilt}
    born = [
        judgement.worst
        for judgement in result.judgements
        if judgement.relation == BORN and judgement.module not in blamed
    ]
    return _line("calls in other modules differ though their inputs have the same bits", born)


def _until(result: StepResult, found: Sequence[Difference]) -> list[Difference]:
    return [d for d in found if d.place.step is None or d.place.step <= result.step]


def _loss(first: Difference, result: StepResult) -> list[str]:
    outputs_differ = any(d.place.module is None for d in result.tallies["forward"].differences)
    losses = [d for d in result.tallies["loss"].differences if d is not first]
    return [] if outputs_differ or not losses else _line("the loss differs though the model's outputs do not", losses)


def _gradient_births(first: Difference, result: StepResult, changed: set[str | None]) -> list[str]:
    differing = _forward_modules(result) | changed | result.backward.differing_outputs
    born = [
        difference
        for difference in result.tallies["gradients"].differences
        if difference.place.call is None
        and difference.place.module in result.backward.watched
        and not _any_inside(difference.place.module or "", differing)
        and difference.place.module != first.place.module
    ]
    text = "parameter gradients differ though what went into and came back to their module has the same bits"
    return _line(text, born)


def _update_births(first: Difference, result: StepResult, changed: set[str | None]) -> list[str]:
    if first.place.rung == "weights":
        return []
    found = result.tallies["weights"].differences
    settings = [d for d in found if (d.place.tensor or "").startswith("param_groups")]
    touched = {(d.place.module, d.place.tensor) for d in result.tallies["gradients"].differences}
    states = {(d.place.module, (d.place.tensor or "").partition(".")[0]) for d in found if _is_optimizer_state(d)}
    forward = _forward_modules(result)
    born = [
        d
        for d in found
        if d.place.module is not None
        and not _is_optimizer_state(d)
        and (d.place.module, d.place.tensor) not in touched | states
        and d.place.module not in changed | forward
    ]
    lines = _line("the optimizer is set otherwise", settings)
    return lines + _line("values after the step differ though their gradients and their modules' calls do not", born)


def _is_optimizer_state(difference: Difference) -> bool:
    """An optimizer's state is named by its parameter and its own name: ``weight.exp_avg``."""
    return "." in (difference.place.tensor or "")


def _forward_modules(result: StepResult) -> set[str | None]:
    return {judgement.module for judgement in result.judgements}


def _any_inside(module: str, names: Iterable[str | None]) -> bool:
    return any(name is not None and (name == module or name.startswith(f"{module}.")) for name in names)


def _line(text: str, differences: Sequence[Difference]) -> list[str]:
    if not differences:
        return []
    names = list(dict.fromkeys(_name(difference) for difference in differences))
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return [f"{text}: {', '.join(f'`{name}`' for name in names[:SHOWN])}{more}"]


def _name(difference: Difference) -> str:
    place = difference.place
    tensor = place.tensor or ""
    own = tensor if place.call is None else ""
    name = ".".join(part for part in (place.module or "", own) if part) or tensor
    return name if place.call in (None, 0) else f"{name} (call {place.call})"
