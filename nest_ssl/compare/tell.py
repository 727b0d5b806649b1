"""Random draws in words: one sentence for how the two sides differ in a draw."""

from __future__ import annotations

from nest_ssl.compare.result import CAME_IN, LEFT_OTHERWISE, ONE_SIDED, Difference, Draw
from nest_ssl.recording import stages as ledger

_STAGES = {
    ledger.MODEL_CONSTRUCTION: "building the model",
    ledger.FIT_START: "the start of fit",
    ledger.VALIDATION: "the validation before this step",
    ledger.FETCH: "fetching the batch",
    ledger.TRAINING_STEP: "the training step, before the forward,",
    ledger.LOSS: "the training step, after the forward,",
    ledger.BACKWARD: "the backward",
    ledger.OPTIMIZER_STEP: "the optimizer step",
}
_MOMENTS = {
    "batch_ready": "when the batch is ready",
    "forward_done": "after the forward",
    "backward_done": "after the backward",
    "step_done": "after the step",
    "before_model": "before the model is built",
    "after_model": "after the model is built",
    "before_first_batch": "before the first batch",
}


def stage_name(stage: str) -> str:
    """``mask_processor#0`` as a reader calls it: ```mask_processor```; a stage outside the calls in words."""
    module, mark, call = stage.rpartition("#")
    if not mark:
        return _STAGES.get(stage, stage)
    name = f"`{module}`" if module else "the model's own forward"
    return name if call == "0" else f"{name}, call {call},"


def tell(draw: Draw, draws: list[Draw]) -> str:
    """One sentence on a draw that differs; `draws` are all of the same step."""
    stage, generator = _stages(draw.reference or draw.candidate), draw.generator
    reference, candidate = (_count(count) for count in draw.draws)
    if draw.relation == CAME_IN:
        text = f"{stage} drew as many numbers from {generator} ({reference}), but started from another state: came in"
    elif draw.relation == LEFT_OTHERWISE:
        text = f"{stage} drew as many numbers from {generator} ({reference}), but left it in another state"
    elif draw.relation == ONE_SIDED and not draw.reference:
        text = f"an extra draw in {stage.rstrip(',')}: {_numbers(candidate)} from {generator}, in the candidate only"
    elif draw.relation == ONE_SIDED:
        text = f"{stage} drew {_numbers(reference)} from {generator}, the candidate none"
    else:
        text = f"{stage} drew {_numbers(reference)} from {generator}, the candidate {candidate}{_where(draw)}"
        text += " from another state: came in" if draw.came_in else ""
    for other in draws:
        if other.difference and other.stage == draw.stage and other.generator != generator and not other.came_in:
            text += f"; from {other.generator} {_count(other.draws[0])} against {_count(other.draws[1])}"
    return f"{text[:1].upper()}{text[1:]}."


def tell_state(difference: Difference) -> str:
    """One sentence on a random state that differs at a boundary, where no ledger tells more."""
    _, moment, generator = (difference.place.tensor or "").split(".")
    return (
        f"{generator} is in another state {_MOMENTS.get(moment, f'at {moment}')}: "
        "one side drew other random numbers, or another count of them."
    )


def _where(draw: Draw) -> str:
    """The candidate's stages, where they are not the reference's."""
    return "" if draw.candidate == draw.reference else f", in {_stages(draw.candidate).rstrip(',')}"


def _stages(stages: tuple[str, ...]) -> str:
    first, last = stage_name(stages[0]), stage_name(stages[-1])
    return first if len(stages) == 1 else f"{first.rstrip(',')} to {last}"


def _count(draws: int | None) -> str:
    return "more than could be counted" if draws is None else f"{draws:,}"


def _numbers(count: str) -> str:
    return f"{count} number" if count == "1" else f"{count} numbers"
