"""What is measured about a difference, beside the two recordings: who writes it, and how it is checked when read.

A folder of evidence belongs to one pair of recordings; every file names both by the seals of their indexes, so that
evidence of other recordings is never taken for this pair's.

    evidence/
      replay.json               the reference's calls, fed to the candidate's own modules
      float64/nemo, nest/       both trainers once more in float64: recordings like any other, see `float64_names`
      float64/replay.json       the replay of the reference's float64 recording
      floor/                    the reference once more, with step_N/noise_floor.json and validation_floor.json
      observer.json             what a run certifies about itself: it repeats itself, is not changed by being recorded
      operators/reference.json, candidate.json      what the modules that differ call
      schedule/reference.json, candidate.json       learning rates without training
      gathered.json             which kinds were asked for, which could be had, and what the others cost in certainty
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nest_ssl.base.errors import UserError
from nest_ssl.base.files import is_regular, write_atomically
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.damage import MOST_TEXT
from nest_ssl.recording.index import Count, Index, Scalar, Sha256, canonical

FOLDER = "evidence"  # beside the two recordings
REPLAY = "replay.json"
FLOAT64 = "float64"
FLOOR = "floor"
OBSERVER = "observer.json"
GATHERED = "gathered.json"
OPERATORS = "operators"
SCHEDULE = "schedule"
NOISE_FLOOR, VALIDATION_FLOOR = "noise_floor.json", "validation_floor.json"  # in what repeated a recording
UNBOUND = "0" * 64  # in place of a seal, in a file that no recording has been shown to belong to yet

# In causal order.
Phase = Literal["batch", "draws", "forward", "loss", "backward", "clipping", "optimizer", "schedule"]
# Of a unit that was replayed: every bit came out; some did not; it ended in an exception; it could not be replayed.
Outcome = Literal["same bits", "other bits", "raised", "not replayed"]
Size = Annotated[float, Field(ge=0, allow_inf_nan=True)]


class Strict(BaseModel):
    """No conversion between types, no unknown key, no change once read."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Place(Strict):
    """An `Address`, as it stands in a file."""

    kind: str
    module: str | None = None
    call: Count | None = None
    slot: str = ""
    path: str = ""
    rank: Count = 0

    @classmethod
    def of(cls, address: Address) -> Place:
        return cls(
            kind=address.kind.value,
            module=address.module,
            call=address.call,
            slot=address.slot,
            path=address.path,
            rank=address.rank,
        )

    @property
    def address(self) -> Address:
        return Address(Kind(self.kind), self.module, self.call, self.slot, self.path, self.rank)


class Deviation(Strict):
    """How far a tensor that came out is from the one that was recorded.

    Args:
        relative: Frobenius norm of the difference over that of the recorded tensor; infinite where the latter is zero.
        norm: Frobenius norm of the recorded tensor.
        max_abs: largest difference of one element.
        nonfinite_disagree: elements of which only one is finite; the sizes run over the others.
        shape: of the recorded one, or None where they differ in shape or type: then no size has a meaning.
        eps: of its type; 0 for whole numbers, and in a file of before it was kept.
    """

    place: Place
    relative: Size = 0.0
    norm: Size = 0.0
    max_abs: Size = 0.0
    elements: Count = 0
    differing: Count = 0
    nonfinite_disagree: Count = 0
    shape: list[Count] | None = None
    eps: Size = 0.0
    why: str = ""  # what differs where it is no number: "shape [2, 3] against [2, 4]"


class Unit(Strict):
    """One thing that was replayed: a call forward or backward, the loss, the batch, clipping, the optimizer.

    Args:
        module, call: of a call; None for what belongs to no module.
        order: execution order in the reference, by start.
        own_code: whether only the module's own code ran, the calls inside it replaced by what they had returned.
        compared: tensors that came out.
        deviations: those of them that have other bits, largest first.
        why: of what raised or was not replayed, the reason in one line.
        judged_with: of a backward of which nothing can be compared by itself, the call around it that hands on what it
            brings, as ``encoder.layers.0#1``.
    """

    step: Count
    rank: Count = 0
    phase: Phase
    module: str | None = None
    call: Count | None = None
    order: Count | None = None
    outcome: Outcome
    own_code: bool = False
    compared: Count = 0
    deviations: list[Deviation] = []
    why: str = ""
    judged_with: str = ""


class Bound(Strict):
    """Evidence about one pair of recordings, named by `seal_of` their indexes."""

    schema_name: str = Field(alias="schema")
    reference: Sha256
    candidate: Sha256 | None = None  # None: evidence about the reference alone
    seconds: Size = 0.0


class Replay(Bound):
    """`replay.json`: every call of every module of the reference, fed to the candidate's own modules.

    Args:
        precision: in which the candidate's modules ran, ``float32`` or ``float64``.
        only_reference, only_candidate: modules that the other side lacks.
        unchecked: a sentence about what was not checked before; empty: nothing.
    """

    schema_name: Literal["nest-ssl-replay/1"] = Field(default="nest-ssl-replay/1", alias="schema")
    precision: str
    units: list[Unit]
    only_reference: list[str] = []
    only_candidate: list[str] = []
    unchecked: str = ""
    sources: dict[str, str] = {}  # of each replayed module the candidate's ``file:line`` of its forward


class FloorEntry(Strict):
    """What rounding alone did to one tensor of a step, over the repeats.

    `relative` is the Frobenius norm of the deviation over that of the tensor without the perturbation.

    Args:
        held_out: relative, of the repeats that were not used for the others; 0 where none was without a flip.
        relative_flipped: the largest of those repeats in which a discrete value became another one; 0 if none did.
    """

    place: Place
    norm: Size
    relative_largest: Size
    relative_typical: Size  # the median
    max_abs_largest: Size
    max_abs_typical: Size
    held_out: Size
    flips: Count = 0  # elements of a discrete tensor that became others in any repeat
    relative_flipped: Size = 0.0
    row: Size | None = None  # in validations the largest `compare.metrics.typical_row`; None in files of before


class Margin(Strict):
    """Of a discrete value that is the best of several: how far the runner-up is, and how far rounding moves that.

    Args:
        flips: repeats in which another one came first.
        others: the runner-up, and all others that rounding may put first; None in a file of before they were named, or
            where they are too many, as for silence.
    """

    place: Place
    index: list[Count]
    margin: Size
    floor: Size
    flips: Count = 0
    others: list[Count] | None = None


class NoiseFloor(Bound):
    """`step_N/noise_floor.json`: the step repeated with weights, buffers and audio moved by one ulp at random.

    Args:
        since: the step in whose beginning each repeat began; what rounding did before is not in this floor.
        flipped: repeats in which a discrete value became another one, then or before the step: no size is of these.
        kept: repeats that were trained once more with the recorded tokens for that reason.
        making: repeats that the sizes are of; None in a file of before this was counted: then `repeats`.
        restart_compared, restart_differing: tensors of a repeat in which nothing was moved, and how many of these have
            other bits than the recorded ones.
    """

    schema_name: Literal["nest-ssl-noise-floor/1"] = Field(default="nest-ssl-noise-floor/1", alias="schema")
    step: Count
    rank: Count = 0
    repeats: Count
    held_out: Count
    since: Count | None = None
    flipped: Count = 0
    kept: Count = 0
    making: Count | None = None
    restart_compared: Count = 0
    restart_differing: Count = 0
    entries: list[FloorEntry]
    margins: list[Margin] = []


class ValidationFloor(Bound):
    """`validation_floor.json`: of what validations make of their first batches before any weight; the largest."""

    schema_name: Literal["nest-ssl-validation-floor/1"] = Field(default="nest-ssl-validation-floor/1", alias="schema")
    repeats: Count
    entries: list[FloorEntry]


class Operator(Strict):
    """One ATen call; or numbers from a generator that is not torch's, as ``numpy.draw`` or ``python.draw``.

    Args:
        name: as ``aten.conv1d.default``.
        tensors: shape and dtype of each tensor argument, as ``[2, 80, 304] float32``.
        arguments: the other arguments, by name.
        phase: ``forward``, ``backward`` or ``optimizer``.
        module, call: the innermost module whose call was open (in backward: whose forward made the node; in the
            optimizer: whose parameter it works on, without a call), if any.
        source: ``file:line`` of the innermost line outside of torch (in backward: of the forward that made the node,
            unless Python ran in backward itself); file is below its package.
    """

    name: str
    phase: Literal["forward", "backward", "optimizer"]
    module: str | None = None
    call: Count | None = None
    tensors: list[str] = []
    arguments: dict[str, Scalar | list[Scalar]] = {}
    outputs: list[str] = []
    source: str = ""


class StepOperators(Strict):
    """`step_N/operators.json`: the ATen operators of one training step, in the order in which they ran.

    Args:
        modules: patterns of the modules that were watched; empty: all, and what runs outside of modules.
        enclosing: of each call, as ``encoder.layers.0#1``, the call that it was made in; "" for none.
        lines: the text of each source line.
    """

    step: Count
    operators: list[Operator]
    modules: list[str] = []
    enclosing: dict[str, str] = {}
    lines: dict[str, str] = {}


class Operators(StepOperators, Bound):
    """The operators of one side, in a folder of evidence."""

    schema_name: Literal["nest-ssl-operators/1"] = Field(default="nest-ssl-operators/1", alias="schema")
    side: str


class Rates(Strict):
    """Learning rates over steps, without training: those that optimizer step `steps[i]` uses, by parameter group."""

    scheduler: str  # class, "" for none
    steps: list[Count]
    rates: list[list[float]]

    @model_validator(mode="after")
    def _fit(self) -> Rates:
        if len(self.rates) != len(self.steps) or len({len(groups) for groups in self.rates}) > 1:
            raise ValueError("every step needs a rate of every group")
        return self


class LearningRates(Rates):
    """`learning_rates.json` of a recording: as its trainer is configured, and planned for as many optimizer steps.

    `longer` is None where the trainer cannot be asked to plan for another length.
    """

    longer: Rates | None = None


class Schedule(LearningRates, Bound):
    """The learning rates of one side, in a folder of evidence."""

    schema_name: Literal["nest-ssl-schedule/1"] = Field(default="nest-ssl-schedule/1", alias="schema")
    side: str


class Check(Strict):
    """One thing that a run certifies about itself, by digests of tensors.

    Args:
        what: ``repeats``: trained once more, it recorded the same bits. ``unwatched``: it has the same weights in the
            end without a recorder. ``restarts``: the step trained again from its saved state leaves the same bits.
        first: the first that differs.
    """

    what: Literal["repeats", "unwatched", "restarts"]
    side: Literal["reference", "candidate"]
    step: Count | None = None
    compared: Count
    differing: Count
    first: str = ""


class Observer(Bound):
    """`observer.json`."""

    schema_name: Literal["nest-ssl-observer/1"] = Field(default="nest-ssl-observer/1", alias="schema")
    checks: list[Check]


class Gathering(Strict):
    """One kind of evidence that was asked for: whether it was had; if not, why, and what is less certain without it."""

    kind: str
    had: bool
    seconds: Size = 0.0
    why: str = ""
    costs: str = ""


class Gathered(Bound):
    """`gathered.json`."""

    schema_name: Literal["nest-ssl-gathered/1"] = Field(default="nest-ssl-gathered/1", alias="schema")
    kinds: list[Gathering]


Evidence = TypeVar("Evidence", bound=Bound)


def folder_beside(reference: Path) -> Path:
    """The folder of evidence about a recording, beside it as it was named: links are not followed."""
    return Path(os.path.abspath(reference)).parent / FOLDER


def float64_names(reference: Path, candidate: Path) -> tuple[str, str]:
    """The folders of both recordings in float64: named as their originals, or by side where these have one name."""
    names = Path(os.path.abspath(reference)).name, Path(os.path.abspath(candidate)).name
    return names if names[0] != names[1] else ("reference", "candidate")


def seal_of(index: Index) -> str:
    """What names a recording: the checksum of its index; of an older recording, which has none, of what was read."""
    return index.sha256 or hashlib.sha256(canonical(index.model_dump(mode="json", by_alias=True))).hexdigest()


def write_evidence(path: Path, evidence: Bound) -> None:
    """Write it as JSON, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, evidence.model_dump_json(by_alias=True, indent=1) + "\n")


def read_evidence(path: Path, kind: type[Evidence]) -> Evidence:
    """Read it back.

    Raises:
        UserError: no such file, or damaged; naming file and field.
    """
    fix = "Gather it again (make explain)."
    if not is_regular(path) or path.stat().st_size > MOST_TEXT:
        raise UserError("no such evidence", str(path), fix)
    try:
        return kind.model_validate(json.loads(path.read_text()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError("damaged evidence", f"{path}: {where}: {first['msg']}", fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError("damaged evidence", f"{path}: {type(error).__name__}", fix) from error
