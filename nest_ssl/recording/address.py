"""The address of a thing in a recording: what kind it is and where, never a string to be parsed back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Kind(str, Enum):
    """What an address names. Each later feature adds kinds; nothing else has to learn a grammar."""

    SETTING = "setting"  # of the contract: slot is the dotted path
    MODULE = "module"  # slot is the property ("class", "training"), empty for the module itself
    CALL = "call"  # one call of a module as a whole
    PARAMETER = "parameter"
    BUFFER = "buffer"
    FIELD = "field"  # of the batch
    INPUT = "input"  # of a call: slot is the name of the argument
    OUTPUT = "output"  # of a call
    MODEL_OUTPUT = "model output"  # of the model's forward, by name
    LOSS = "loss"
    OUTPUT_GRADIENT = "output gradient"  # what arrived at a call's output in backward
    GRADIENT = "gradient"  # of a parameter
    GRADIENT_BEFORE = "gradient before backward"  # of a parameter: what backward adds to
    UPDATE = "update"  # of a parameter by the step: after minus before
    APPLIED_GRADIENT = "applied gradient"  # of a parameter, as the optimizer used it: after clipping
    OPTIMIZER_STATE = "optimizer state"  # slot is the parameter's own name, path the state's ("exp_avg")
    OPTIMIZER_SETTING = "optimizer setting"  # slot is the group's number, path the setting's name
    SCHEDULE = "schedule"  # of learning rates: slot is its number, path what it says of itself
    METRIC = "metric"  # of a validation, by name
    DRAW = "draw"  # slot is the generator; module and call, or a phase in the moment, say who drew
    GENERATOR_STATE = "generator state"  # at a boundary: slot is the generator


# Of what shares its slots with something else.
_PREFIXES = {
    Kind.INPUT: "inputs",
    Kind.OUTPUT: "output",
    Kind.OUTPUT_GRADIENT: "output_grad",
    Kind.UPDATE: "update",
    Kind.APPLIED_GRADIENT: "applied_grad",
}


@dataclass(frozen=True, slots=True)
class Address:
    """Where something is; as much of it as applies.

    Args:
        kind: what it is.
        module: dotted name of the module that it belongs to; "" is the root; None where no module has it.
        call: the how-many-th call of that module in the step, from 0.
        slot: its own name there: a parameter's, an argument's, a field's, a setting's.
        path: place inside a nested value, list indices and keys joined with dots.
        rank: of which process.
    """

    kind: Kind
    module: str | None = None
    call: int | None = None
    slot: str = ""
    path: str = ""
    rank: int = 0

    def at(self, path: str) -> Address:
        """The same, further inside a nested value."""
        return replace(self, path=f"{self.path}.{path}" if self.path and path else self.path or path)

    @property
    def own_name(self) -> str:
        """Slot and path joined, e.g. ``weight.exp_avg``; for an input ``inputs.x``, for an output ``output.0``."""
        return ".".join(part for part in (_PREFIXES.get(self.kind, ""), self.slot, self.path) if part)


def of_entry(kind: Kind, name: str, path: str = "", rank: int = 0) -> Address:
    """The address of a parameter, buffer, gradient or optimizer state by the full name of its parameter or buffer."""
    module, _, own = name.rpartition(".")
    return Address(kind, module, None, own, path, rank)
