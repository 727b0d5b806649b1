"""Whether what was replayed is the same function: the same bits, else agreement in float64, else within its own floor.

In float64 a correct rewrite agrees to 1e-13 and the smallest bug does not to 1e-9. Float64 says nothing on what is no
better than float32 even there (features, a table of positions), and nothing on a cast; there the noise floor decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor, finfo, float32, float64

from nest_ssl.base.nested import tensors
from nest_ssl.compare.evidence import Evidence, UnitKey, by_key, key_of
from nest_ssl.compare.rules.known import Known
from nest_ssl.compare.rules.noise_floor import LOOK, floors_of, is_noise
from nest_ssl.recording import layout
from nest_ssl.recording.address import Address, Kind
from nest_ssl.recording.calls import Call
from nest_ssl.recording.clock import BEFORE_STEPS
from nest_ssl.recording.evidence import Deviation, Unit
from nest_ssl.recording.reader import Recording

AGREE = 1e-10  # relative, in float64; 13 correct rewrites lie within 1.4e-13, the smallest faults at 2.2e-9
VANISHES = 1e-6  # of its size in float32: what so little is left of in float64 has the true value zero


class Function(str, Enum):
    """Of what was replayed, or of a module."""

    SAME = "same function"
    ANOTHER = "another function"
    KNOWN = "known difference"  # in the user's ledger
    CAME_IN = "came in"  # a module: the same function, given other inputs or other gradients
    UNDECIDED = "other bits"  # and neither float64 nor a noise floor to say what that means
    NOT_REPLAYED = "not replayed"


class By(str, Enum):
    """What decided."""

    BITS = "bits"
    FLOAT64 = "float64"
    FLOOR = "noise floor"
    ERROR = "error"  # the candidate's module raised
    SHAPE = "shape"  # or type, or NaN on one side
    RATES = "rates"  # learning rates, worked out without training
    SCALE = "scale"  # within the noise floor, and the reference times one number: rounding has no direction
    FLOAT32 = "float32"  # the same function in float64, and not in float32: a cast, TF32, autocast


@dataclass(frozen=True, slots=True)
class UnitJudgement:
    """What is known of one unit.

    Args:
        worst: the deviation that decided, if one did.
        floors: that deviation in its own noise floors.
        float64: the largest relative deviation in float64, where it was had.
    """

    unit: Unit
    function: Function
    by: By | None = None
    worst: Deviation | None = None
    floors: float | None = None
    float64: float | None = None


class SameFunctionRule:
    """Judges the units of a replay with all other evidence on the same pair.

    Args:
        known: differences that the user knows and means.
        scaled: what comes out as the reference times one number, by step and address, of the same bits going in.
    """

    def __init__(
        self, evidence: Evidence, known: Sequence[Known] = (), scaled: Collection[tuple[int, Address]] = ()
    ) -> None:
        self.evidence, self.known, self.scaled = evidence, known, scaled
        self.in_float64 = by_key(evidence.replay64)
        self._float32_values: dict[UnitKey, bool] = {}

    def judge(self, unit: Unit) -> UnitJudgement:
        if unit.outcome == "same bits" and (unit.compared or unit.judged_with):
            return UnitJudgement(unit, Function.SAME, By.BITS)
        if unit.outcome in ("not replayed", "same bits") or (unit.outcome == "other bits" and not unit.deviations):
            return UnitJudgement(unit, Function.NOT_REPLAYED)
        if unit.outcome == "raised":
            return UnitJudgement(unit, Function.ANOTHER, By.ERROR)
        odd = next((one for one in unit.deviations if one.shape is None or one.nonfinite_disagree), None)
        if odd:
            return UnitJudgement(unit, Function.ANOTHER, By.SHAPE, odd)
        if self.known and all(
            any(entry.matches(one.place.address) and one.relative <= entry.within for entry in self.known)
            for one in unit.deviations
        ):
            return UnitJudgement(unit, Function.KNOWN)
        ranked = [(self._floors(unit, one), one) for one in unit.deviations]
        floors, worst = max(ranked, key=lambda each: (each[0] is not None, each[0] or 0.0, each[1].relative))
        apart = self._apart_in_float64(unit)
        if apart is not None and apart > AGREE and not self._has_float32_values(unit):
            return UnitJudgement(unit, Function.ANOTHER, By.FLOAT64, worst, floors, apart)
        if floors is not None and floors > LOOK:
            by = By.FLOOR if apart is None or apart > AGREE else By.FLOAT32
            return UnitJudgement(unit, Function.ANOTHER, by, worst, floors, apart)
        if apart is not None and apart <= AGREE:
            return UnitJudgement(unit, Function.SAME, By.FLOAT64, worst, floors, apart)
        if any((unit.step, one.place.address) in self.scaled for one in unit.deviations):
            return UnitJudgement(unit, Function.ANOTHER, By.SCALE, worst, floors, apart)
        if all(floor is not None for floor, _ in ranked):
            return UnitJudgement(unit, Function.SAME, By.FLOOR, worst, floors, apart)
        return UnitJudgement(unit, Function.UNDECIDED, None, worst, floors, apart)

    def _floors(self, unit: Unit, deviation: Deviation) -> float | None:
        floor = self.evidence.floor(unit.step, deviation.place.address)
        if floor is None:
            return None
        own = deviation.norm, deviation.eps or finfo(float32).eps, deviation.elements
        return floors_of(deviation.relative, deviation.max_abs, floor, *own)

    def _apart_in_float64(self, unit: Unit) -> float | None:
        """The largest relative deviation of the same unit in float64; of what is zero there, none."""
        found = self.in_float64.get(key_of(unit))
        if found is None or found.outcome in ("not replayed", "raised") or not (found.compared or found.judged_with):
            return None
        if any(one.shape is None or one.nonfinite_disagree for one in found.deviations):
            return float("inf")
        norms = {one.place: one.norm for one in unit.deviations}
        largest = 0.0
        for one in found.deviations:
            floor = self.evidence.floor(unit.step, one.place.address)
            in_float32 = norms.get(one.place, floor.norm if floor else 0.0)
            if one.norm <= VANISHES * in_float32 and one.max_abs <= VANISHES * in_float32:
                continue
            if floor and is_noise(floor) and one.max_abs <= VANISHES * floor.max_abs_largest:
                continue
            largest = max(largest, one.relative)
        return largest

    def _has_float32_values(self, unit: Unit) -> bool:
        """Whether what deviates in float64 has values of float32 in the reference's float64 recording."""
        key = key_of(unit)
        if key not in self._float32_values:
            apart = [one for one in self.in_float64[key].deviations if one.shape is None or one.relative > AGREE]
            known = self.evidence.float64 is not None and unit.phase == "forward" and bool(apart)
            self._float32_values[key] = known and all(
                (one.shape is not None or _of_another_width(one))
                and not one.nonfinite_disagree
                and has_float32_values(self.evidence.float64[0], unit.step, one.place.address)  # type: ignore[index]
                for one in apart
            )
        return self._float32_values[key]


def has_float32_values(recording: Recording, step: int, address: Address) -> bool:
    """Whether in a float64 recording the output of a call, or a buffer before the steps, is no better than float32.

    It holds nothing but values of float32; or the call was given numbers in float32 alone, so that it computes in that
    (features are: both trainers hand the audio to them in float32, whatever the precision of the training).
    """
    if address.kind == Kind.BUFFER and step == BEFORE_STEPS:
        name = ".".join(part for part in (address.module, address.slot) if part)
        made = (recording.initial_weights() or {}).get(name)
        return made is not None and _is_of_float32(made)
    if address.kind != Kind.OUTPUT or step not in recording.steps:
        return False
    calls = recording.step(step, address.rank).calls()
    call = next((one for one in calls if (one.module, one.call) == (address.module, address.call)), None)
    tensor = dict(tensors(call.output)).get(address.path) if call else None
    if call is None or tensor is None:
        return False
    return _given_float32(call) or _is_of_float32(tensor)


def _of_another_width(deviation: Deviation) -> bool:
    """Whether it is of one shape and in float32 on one side alone: what leaves in float64 there, rounded or not."""
    return bool(re.fullmatch(r"(.*) float(32|64) against \1 float(32|64)", deviation.why))


def in_float32(recording: Recording, parts: Collection[str]) -> frozenset[str]:
    """Which of these direct parts of the model compute in float32 in a float64 recording too, or a call within them."""
    steps = [step for step in map(recording.step, recording.steps[:1]) if parts and step.has(layout.CALLS)]
    calls = [call for step in steps for call in step.calls() if call.module.partition(".")[0] in parts]
    made = [(call, [one for _, one in tensors(call.output) if one.is_floating_point()]) for call in calls]
    single = (call for call, given in made if given and (_given_float32(call) or all(map(_is_of_float32, given))))
    return frozenset(call.module.partition(".")[0] for call in single)


def _given_float32(call: Call) -> bool:
    return {one.dtype for _, one in tensors(call.inputs) if one.is_floating_point()} == {float32}


def _is_of_float32(tensor: Tensor) -> bool:
    return bool((tensor.to(float32).to(float64) == tensor.to(float64)).all())
