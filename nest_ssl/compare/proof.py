"""What the evidence shows about a difference: rounding or a bug, and where each was born.

A difference is rounding only where all of it agrees: every function is the same (by replay, or both trainers agree in
float64), and every tensor lies within what rounding alone does to it. What is lacking for that is listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from nest_ssl.compare.born import Born, ModuleJudgement, born_of, judge_modules, with_lines
from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.evidence import Evidence, Had
from nest_ssl.compare.findings import Finding, Note
from nest_ssl.compare.gaps import Gap, Part, gaps
from nest_ssl.compare.metrics import is_scaled
from nest_ssl.compare.patterns import Pattern, patterns_of
from nest_ssl.compare.roots import Root
from nest_ssl.compare.rules.known import Known
from nest_ssl.compare.rules.noise_floor import BEHIND_A_FLIP, ENOUGH, Band, band, is_table
from nest_ssl.compare.rules.same_function import By, Function, SameFunctionRule, has_float32_values
from nest_ssl.compare.schedules import ROUNDING, compare_rates
from nest_ssl.recording.evidence import Check
from nest_ssl.recording.reader import Recording


class Agreement(str, Enum):
    """Of both trainers in float64, end to end."""

    NOT_HAD = "not had"  # or nothing was compared there of what is compared here
    AGREES = "agrees"
    PARTLY = "agrees in part"  # nothing differs, and not everything that is compared here was compared there
    FLOAT32 = "float32 values"  # what parts first has values of float32 even there, and all behind it follows
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class Float64:
    """What both trainers in float64 showed, end to end.

    Args:
        largest: relative distance of what agrees, at most.
        first: the first tensor that does not.
        covers: rungs of a step and rank that were compared there as a whole and agree, each tensor, to `AGREE`.
        without: the first that was compared here and not there.
        validated: of validations that agree there too, the steps that come next.
        blind: what may be furthest apart in a validation, and agree.
    """

    agreement: Agreement = Agreement.NOT_HAD
    largest: float = 0.0
    first: Finding | None = None
    covers: frozenset[Part] = frozenset()
    without: Part | None = None
    validated: frozenset[int | None] = frozenset()
    blind: Finding | None = None


@dataclass(slots=True)
class Proof:
    """Everything that the evidence shows.

    Args:
        evidence: which kinds there are.
        units: what was replayed, by what it is and what decided that.
        modules: every module that was replayed, or could not be.
        born: every place where a difference was born, in causal order.
        bands: tensors with other bits, by their ratio to the floor.
        largest: the tensor with the largest ratio.
        lacking: why the difference is not shown to be rounding.
    """

    evidence: list[Had] = field(default_factory=list)
    units: Counter[tuple[Function, By | None]] = field(default_factory=Counter)
    modules: list[ModuleJudgement] = field(default_factory=list)
    born: list[Born] = field(default_factory=list)
    float64: Float64 = field(default_factory=Float64)
    bands: Counter[Band] = field(default_factory=Counter)
    largest: Finding | None = None
    lacking: list[Note] = field(default_factory=list)
    patterns: list[Pattern] = field(default_factory=list)  # causes that are no module's own
    checks: list[Check] = field(default_factory=list)  # what the runs certify about themselves

    @property
    def had(self) -> bool:
        return any(kind.had for kind in self.evidence)

    @property
    def unsound(self) -> list[Check]:
        """Checks that take the ground from under any agreement: a run that does not repeat, or was changed by watching.

        What was recorded once then says nothing of the trainer, whether both recordings agree or not.
        """
        return [one for one in self.checks if one.what != "restarts" and (one.differing or not one.compared)]


def weigh(
    reference: Recording,
    evidence: Evidence,
    findings: Sequence[Finding],
    roots: Sequence[Root],
    steps: Sequence[StepFindings],
    in64: Float64,
    known: Sequence[Known] = (),
) -> Proof:
    """Weigh all evidence on one comparison.

    Args:
        findings: everything that differs, in causal order.
        roots: what of it nothing recorded explains.
        steps: all steps that were compared.
        in64: both trainers in float64, end to end.
        known: differences that the user knows and means.
    """
    scaled = [root.finding for root in roots if root.phase == "forward" and is_scaled(root.finding.metrics)]
    rule = SameFunctionRule(evidence, known, {(one.moment.step, one.address) for one in scaled})
    replayed, numbers = evidence.replay.units if evidence.replay else [], {step.step for step in steps}
    units = [rule.judge(unit) for unit in replayed if unit.step in numbers]
    measured = [one for one in findings if one.judgement and one.judgement.rule == "noise floor"]
    ratios = [(one.judgement.ratio, one) for one in measured if one.judgement and one.judgement.ratio is not None]

    def is_rounding(finding: Finding) -> bool:
        if finding.judgement and finding.judgement.rule == "known":
            return True
        both, step, at = evidence.float64, finding.moment.step, finding.address
        if finding.rung == "validation" and finding.within:  # of the same weights, or it would be no root
            return step in in64.validated if both else {one.function for one in units} == {Function.SAME}
        silent = both and is_table(finding.rung, at) and has_float32_values(both[0], step, at)
        covered = (step, at.rank, finding.rung) in in64.covers
        return finding.within and (covered or bool(silent))  # silent: float64 says nothing there

    differing = {call.module for step in steps for call in step.calls}
    differing |= {module for step in steps for module in step.given_other_gradients() if module is not None}
    proof = Proof(
        evidence.had,
        Counter((judged.function, judged.by) for judged in units),
        judge_modules(units, differing),
        born_of(units, roots, is_rounding) if findings else [],
        in64,
        Counter(band(ratio) for ratio, _ in ratios),
        max(ratios, key=lambda each: each[0])[1] if ratios else None,
    )
    proof.patterns, proof.checks = patterns_of(steps), evidence.checks
    rates = compare_rates(*evidence.schedules) if evidence.schedules else []
    parted = [one for one in rates if one.first < 0 or one.largest > ROUNDING]
    if parted and not any(one.phase == "schedule" for one in proof.born):  # also after the recorded steps
        proof.born.append(Born("schedule", None, step=max(0, parted[0].first), size=parted[0].largest, by=By.RATES))
    proof.born += _born_in_validation(in64, proof.born)
    if findings:
        updated = {number: facts.optimizer_stepped for number, facts in reference.index.steps.items()}
        proof.lacking = _lacking(evidence, proof, findings, gaps(steps, units, in64.covers, updated))
    lines = evidence.replay.sources if evidence.replay else {}
    files = {name: source.file for name, source in reference.index.sources.items()}  # by class
    found = [(one.name, files.get(one.module_class, "")) for one in reference.structure.modules]
    proof.born = with_lines(proof.born, {n: (file, lines.get(n, "")) for n, file in found}, evidence.operators)
    return proof


def _born_in_validation(in64: Float64, found: Sequence[Born]) -> list[Born]:
    """Where float64 parts in a validation alone, and agrees at all steps up to it: no weights explain that."""
    at = in64.first
    if at is None or at.rung != "validation" or at.moment.step - 1 not in {step for step, _, _ in in64.covers}:
        return []
    if any(one.phase == "validation" for one in found):
        return []
    size, place = at.metrics.relative if at.metrics else None, (at.address.module, at.address.call, at.moment.step)
    return [Born("validation", *place, in_float64=size, by=By.FLOAT64, address=at.address)]


def _lacking(evidence: Evidence, proof: Proof, findings: Sequence[Finding], left: Sequence[Gap]) -> list[Note]:
    notes, in64 = [], proof.float64
    if in64.agreement is Agreement.DIFFERS:
        notes.append(Note("lacks_float64", {"at": in64.first}))
    unsettled = [one for one in findings if one.rung == "validation" and one.moment.step not in in64.validated]
    unsettled = [one for one in unsettled if one.judgement and one.judgement.rule != "known"]
    if unsettled and evidence.float64 and in64.agreement is not Agreement.DIFFERS:
        notes.append(Note("lacks_validation", {"at": unsettled[0]}))
    if left and evidence.replay is None and in64.agreement in (Agreement.NOT_HAD, Agreement.FLOAT32):
        notes.append(Note("lacks_function"))
    elif left:
        notes.append(Note("lacks_replay", {"count": len(left), "at": left[0]}))
    if not evidence.floors:
        return [*notes, Note("lacks_floor")]
    silent = [one for one in findings if one.rung == "validation" and one.address.module in evidence.unweighted]
    silent = [one for one in silent if one.judgement and one.judgement.rule == "noise floor"]
    notes += [Note("lacks_validation_floor", {"at": one}) for one in silent if one.address not in evidence.features][:1]
    notes += [Note("lacks_restart") for one in proof.checks if one.what == "restarts" and one.differing][:1]
    beyond = [one for one in findings if not one.within]
    ruled = [(one, one.judgement) for one in beyond if one.judgement]
    behind = [one for one, said in ruled if said.rule == BEHIND_A_FLIP and not said.bound["relative"]]
    if len(behind) < len(beyond):
        first = next(one for one in beyond if one not in behind)
        notes.append(Note("beyond_floor", {"count": len(beyond) - len(behind), "at": first}))
    if behind:
        notes.append(Note("lacks_flip", {"count": len(behind), "at": behind[0]}))
    few = [(step, floors.repeats) for (step, _), floors in sorted(evidence.floors.items()) if floors.repeats < ENOUGH]
    if beyond and few:
        notes.append(Note("lacks_repeats", {"step": few[0][0], "count": few[0][1]}))
    return notes
