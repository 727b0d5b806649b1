"""Climbs the ladder: compares two recordings rung by rung, finds the first difference in causal order, and judges.

comparison = compare_recordings(open_recording("outputs/nemo"), open_recording("outputs/nest"))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, takewhile

from torch import Size

from nest_ssl.base.errors import EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK, UserError
from nest_ssl.base.progress import bar
from nest_ssl.compare import causes
from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.comparison import Comparison, Declared, Explainer, Explanation, Facts, Side
from nest_ssl.compare.declared import Entry
from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import (
    OPTIONAL_RUNGS,
    RUNGS,
    SEVERITY,
    STEP_RUNGS,
    Draw,
    Finding,
    Rung,
    RungName,
    Status,
    Tally,
)
from nest_ssl.compare.gaps import Part
from nest_ssl.compare.kinds.likely import kinds_of
from nest_ssl.compare.known import known_differences
from nest_ssl.compare.names import Renamed
from nest_ssl.compare.narrow import Narrowed, seen_by
from nest_ssl.compare.proof import Agreement, Float64, Proof, weigh
from nest_ssl.compare.roots import roots_of
from nest_ssl.compare.rules import Rule
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rules.float64 import Float64Rule, shown_by
from nest_ssl.compare.rules.known import Known, KnownRule
from nest_ssl.compare.rules.noise_floor import NoiseFloorRule, excuse_flips, growth_of
from nest_ssl.compare.rules.same_function import AGREE, has_float32_values, in_float32
from nest_ssl.compare.rules.signs import Signs
from nest_ssl.compare.rungs import (
    batch,
    contract,
    draws,
    forward,
    gradients,
    initial_weights,
    loss,
    optimizer_input,
    start,
    structure,
    validation,
    weights,
)
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.rungs.steps import compare_steps
from nest_ssl.compare.unseen import unseen_by, widest_of
from nest_ssl.compare.values import Comparer
from nest_ssl.recording import layout
from nest_ssl.recording.calls import Call
from nest_ssl.recording.clock import BEFORE_STEPS
from nest_ssl.recording.index import of_another_kind
from nest_ssl.recording.reader import Recording

RUN_RUNGS: tuple[RungName, ...] = ("contract", "structure", "initial_weights", "draws")
_NO_NUMBERS: tuple[RungName, ...] = ("contract", "structure", "steps")


def compare_recordings(
    reference: Recording,
    candidate: Recording,
    rule: Rule | None = None,
    steps: Sequence[int] | None = None,
    declared: Sequence[Entry] | None = None,
    explainers: Sequence[Explainer] = (),
    evidence: Evidence | None = None,
    known: Sequence[Known] = (),
) -> Comparison:
    """Compare two recordings.

    Args:
        rule: what is let pass where bits differ; None: what the evidence shows to be rounding, else nothing.
        steps: only these; all recorded ones when None.
        declared: structural differences that are meant; the committed list when None.
        explainers: what else is to be said about each step.
        evidence, known: what was measured about this pair; differences that the user knows and means.

    Raises:
        UserError: a step that neither recording has, or a damaged recording.
    """
    reference = reference if candidate.index.imported is None else Narrowed(reference, candidate)
    shared = _shared_steps(reference, candidate, steps)
    judge = rule or (NoiseFloorRule(evidence) if evidence and evidence.floors else SameBits())
    comparer = Comparer(ledger := KnownRule(judge, known, whole=reference.index.rank is None))
    own, excused, before, results = _compare_all(reference, candidate, comparer, shared, steps, declared, evidence)
    tallies = [*own, *(tally for result in results for tally in result.tallies.values() if not tally.unrecorded)]
    ordered = causes.in_causal_order(tallies, results)
    first = causes.headline(ordered)
    cause = causes.cause_of(first, results, before, shared, grown=first is not ordered[0]) if first else None
    whole = [*tallies, compare_steps(Sheet("steps", comparer), results, shared)]
    in64 = _in_float64(evidence, tallies, shared, declared, known)
    roots = roots_of(own, before, results, contract.went_on_at(reference, candidate))
    proof = weigh(reference, evidence or Evidence(), ordered, roots, results, in64, known)
    explanations = [e for explain in explainers for step in shared if (e := explain(reference, candidate, step))]
    rungs = [Rung(n, found) for n in RUNGS if (found := [t for t in whole if t.rung == n]) or n not in OPTIONAL_RUNGS]
    comparison = Comparison(
        _side(reference),
        _side(candidate),
        shared,
        rungs,
        *_judge(rungs, proof, rule is None and proof.had),
        first,
        next(iter(ordered), None),
        next((finding for finding in ordered if not finding.within), None),
        cause,
        causes.consequences(first, tallies) if first else [],
        causes.unexplained(first, ordered, results, cause) if first else [],
        calls=[call for result in results for call in result.calls],
        draws=[*before, *(draw for result in results for draw in result.draws)],
        losses=[result.loss for result in results if result.loss and result.rank == 0],
        explanations=explanations, declared=excused, known=known_differences(reference, candidate),
        rule=comparer.rule.describe(), facts=_facts(reference, comparer, explanations), ledger=ledger.used(),
        notes=[note for tally in whole for note in chain(tally.absent, tally.notes)],
        proof=proof, unseen=[*unseen_by(reference, candidate, shared, evidence, in64), *ledger.undecided()],
    )  # fmt: skip
    one, other = ({m.name: m.module_class for m in side.structure.modules} for side in (reference, candidate))
    comparison.kinds = kinds_of(comparison, (one, other))
    return comparison


def _compare_all(
    reference: Recording,
    candidate: Recording,
    comparer: Comparer,
    shared: Sequence[int],
    steps: Sequence[int] | None,
    declared: Sequence[Entry] | None,
    evidence: Evidence | None,
) -> tuple[list[Tally], list[Declared], list[Draw], list[StepFindings]]:
    """What was found of the run as a whole, the declared differences, the draws before the steps, and every step."""
    run = {name: Sheet(name, comparer) for name in RUN_RUNGS}
    if evidence:
        evidence.unweighted = validation.without_weights(reference)
    excused = structure.compare_structure(run["structure"], reference, candidate, declared)
    if isinstance(reference, Narrowed):
        run["structure"].nothing("imported", **reference.described(shared))
    if isinstance(candidate, Renamed):
        run["structure"].note("renamed", **candidate.described())
    start = contract.resumed_at(reference, candidate)
    before = (
        draws.compare_draws_before_the_steps(run["draws"], reference.index, candidate.index) if start is None else []
    )
    initial_weights.compare_initial_weights(run["initial_weights"], reference, candidate, start)
    changed = _modules(run["initial_weights"].tally)
    with bar("comparing", sum(entry.bytes for entry in reference.index.files.values())):
        results = _compare_steps(reference, candidate, comparer, shared, changed, evidence)
    contract.compare_contract(run["contract"], reference, candidate, steps, [r.tallies["batch"] for r in results])
    if evidence and evidence.stale:
        run["contract"].note("stale_evidence", where=evidence.stale)
    validations = validation.compare_validations(comparer, reference, candidate, steps)
    if isinstance(comparer.rule, KnownRule):  # only now it is known which entries were used, and from where on
        comparer.rule.follow([*(tally for result in results for tally in result.tallies.values()), *validations])
        run["structure"].tally.findings += comparer.rule.out_of_date()
    tallies = [*(sheet.tally for sheet in run.values()), *validations]
    return [tally for tally in tallies if not tally.unrecorded], excused, before, results


def _in_float64(
    evidence: Evidence | None,
    tallies: Sequence[Tally],
    steps: Sequence[int],
    declared: Sequence[Entry] | None,
    known: Sequence[Known],
) -> Float64:
    """Both trainers in float64, compared with each other by their numbers alone, at the steps that are compared here.

    Args:
        tallies: of what is compared here: what float64 says nothing about is not covered by it.
    """
    both = evidence.float64 if evidence else None
    shared = [step for step in steps if both and all(step in side.steps for side in both)]
    if evidence is None or both is None or not shared:
        return Float64(blind=widest_of(one for tally in tallies for one in tally.findings))
    inner = compare_recordings(*both, Float64Rule(evidence), shared, declared, known=known)
    made = [tally for rung in inner.rungs if rung.name not in _NO_NUMBERS for tally in rung.tallies]
    made = [tally for tally in made if tally.rung != "validation"]
    validated = _validations_in_float64(evidence, both, tallies, made, known)
    made += validated
    found = [one for tally in made for one in tally.findings]
    compared = {_part(tally): tally for tally in made if tally.compared and not tally.absent}
    covers = {part for part, tally in compared.items() if all(_agreeing(one) is not None for one in tally.findings)}
    largest = max(filter(None, map(_agreeing, found)), default=0.0)
    wanted = [_part(tally) for tally in tallies if tally.compared and tally.rung not in _NO_NUMBERS]
    without = min((part for part in wanted if part not in compared), key=_causally, default=None)
    beyond = sorted((one for one in found if not one.within), key=lambda one: one.moment)
    agreement = Agreement.AGREES if without is None else Agreement.PARTLY if covers else Agreement.NOT_HAD
    if beyond and has_float32_values(both[0], beyond[0].moment.step, beyond[0].address):
        agreement = Agreement.FLOAT32
        beyond.sort(key=lambda one: one.rung != "validation")  # it was held against what those values did to the steps
    if beyond and (agreement is not Agreement.FLOAT32 or beyond[0].rung == "validation"):
        agreement = Agreement.DIFFERS
    same = {tally.step for tally in validated if tally.compared and all(one.within for one in tally.findings)}
    first = beyond[0] if beyond else None
    blind = widest_of(one for tally in validated for one in tally.findings)
    return Float64(agreement, largest, first, frozenset(covers), without, frozenset(same), blind)


def _validations_in_float64(
    evidence: Evidence,
    both: tuple[Recording, Recording],
    here: Sequence[Tally],
    steps: Sequence[Tally],
    known: Sequence[Known],
) -> list[Tally]:
    """The validations that are compared here, judged by what the steps of float64, `steps`, show."""
    shown = [one for tally in steps for one in tally.findings]
    beyond = sorted((one for one in shown if not one.within), key=lambda one: one.moment)
    silent = takewhile(lambda one: has_float32_values(both[0], one.moment.step, one.address), beyond)
    single = in_float32(both[0], evidence.unweighted)
    rule = Float64Rule(evidence, shown_by(shown), frozenset(one.address for one in silent), single)
    judge = KnownRule(rule, known, whole=False)
    found = validation.compare_validations(
        Comparer(judge), *both, [t.step for t in here if t.rung == "validation" and t.step is not None]
    )
    for one in (one for tally in steps for one in tally.findings if one.judgement and one.judgement.rule == "known"):
        for entry in (entry for entry in known if entry.matches(one.address)):
            judge.since[entry] = min(one.moment, judge.since.get(entry, one.moment))
    judge.follow(found)
    return found


def _part(tally: Tally) -> Part:
    return BEFORE_STEPS if tally.step is None else tally.step, tally.rank, tally.rung


def _causally(part: Part) -> tuple[int, int, int]:
    step, rank, rung = part
    return step, RUNGS.index(rung), rank


def _agreeing(finding: Finding) -> float | None:
    """How far apart, relative, what agrees in float64 is; None where it does not, or only as float32 would."""
    judgement = finding.judgement
    if judgement is None or judgement.rule != "float64" or judgement.ratio is None:
        return None
    size = judgement.ratio * judgement.bound["relative"]
    return size if finding.within and size <= AGREE else None


def _compare_steps(
    reference: Recording,
    candidate: Recording,
    comparer: Comparer,
    shared: Sequence[int],
    changed: frozenset[str | None],
    evidence: Evidence | None,
) -> list[StepFindings]:
    """All steps of all ranks; `changed` are the modules with own weights that differ before the first one."""
    kinds = initial_weights.kinds_of(reference, candidate)
    results: list[StepFindings] = []
    signs = Signs(comparer.rule, evidence) if evidence else None
    for step in shared:
        for rank in range(min(reference.world_size, candidate.world_size)):
            results.append(_compare_step(reference, candidate, comparer, kinds, step, rank))
            started = results[-1].tallies["start"]
            known = started.compared["parameters"] or not causes.unrecorded(shared, step)
            results[-1].calls = causes.judge_calls(results[-1], changed | _modules(started) if known else None)
            if evidence and signs:
                signs.excuse(results[-1], (reference.step(step, rank), candidate.step(step, rank)))
                evidence.growths[step + 1, rank] = growth_of(results[-1].tallies["weights"])
        changed = changed.union(*(_modules(r.tallies["weights"]) for r in results if r.step == step))
    if evidence:
        excuse_flips([tally for result in results for tally in result.tallies.values()], evidence)
    return results


def _compare_step(
    reference: Recording, candidate: Recording, comparer: Comparer, kinds: initial_weights.Kinds, step: int, rank: int
) -> StepFindings:
    sides = reference.step(step, rank), candidate.step(step, rank)
    sheets = {name: Sheet(name, comparer, step, rank) for name in STEP_RUNGS}
    result = StepFindings(step, rank, {name: sheet.tally for name, sheet in sheets.items()})
    modes = [{m.name: m.training for m in recording.structure.modules} for recording in (reference, candidate)]
    result.moved = start.compare_start(sheets["start"], *sides, kinds, (modes[0], modes[1]))
    batch.compare_batch(sheets["batch"], *sides)
    calls: tuple[list[Call], list[Call]] = ([], [])
    if sheets["forward"].both_have(layout.CALLS, *sides):
        calls = (seen_by(reference, candidate, sides[0].calls()), seen_by(candidate, reference, sides[1].calls()))
        result.spans = forward.compare_calls(sheets["forward"], *calls)
    if sheets["draws"].both_have(layout.RNG, *sides):
        event = draws.same_event(*calls)
        other_device = of_another_kind(reference.index.device.type, candidate.index.device.type)
        result.draws = draws.compare_draws_of_step(sheets["draws"], sides[0].rng(), sides[1].rng(), event, other_device)
    forward.compare_forward_output(sheets["forward"], *sides)
    result.loss = loss.compare_loss(sheets["loss"], *sides)
    result.reached = gradients.compare_output_gradients(sheets["gradients"], *calls)
    gradients.compare_gradients_before(sheets["gradients"], *sides)
    gradients.compare_parameter_gradients(sheets["gradients"], *sides, calls[0])
    optimizer_input.compare_optimizer_input(sheets["optimizer_input"], *sides)
    weights.compare_after_step(sheets["weights"], *sides, kinds, sheets["gradients"].tally.findings)
    weights.compare_schedules(sheets["weights"], *sides)
    return result


def _shared_steps(reference: Recording, candidate: Recording, asked: Sequence[int] | None) -> list[int]:
    recorded = {*reference.steps, *candidate.steps}
    for step in asked or ():
        if step not in recorded:
            have = ", ".join(map(str, sorted(recorded))) or "none"
            raise UserError("a step that neither recording has", f"--steps {step}", f"Recorded steps: {have}.")
    start = contract.resumed_at(reference, candidate) or 0
    shared = {step for step in reference.steps if step in candidate.steps and step >= start}
    return sorted(shared if asked is None else shared & set(asked))


def _modules(tally: Tally) -> frozenset[str | None]:
    return frozenset(finding.address.module for finding in tally.findings)


def _judge(rungs: Sequence[Rung], proof: Proof, by_evidence: bool) -> tuple[Status, int]:
    """The verdict; by evidence what is within the noise floor is rounding only if nothing speaks against it."""
    statuses = {rung.name: rung.status for rung in rungs}
    if statuses["contract"] != Status.IDENTICAL:
        return Status.INCONCLUSIVE, EXIT_CONTRACT_DIFFERS
    worst = max(statuses.values(), key=SEVERITY.index)
    if worst in (Status.DIVERGED, Status.MISSING):
        return Status.DIVERGED, EXIT_DIVERGED
    if worst == Status.NOT_COMPARED:
        return Status.INCONCLUSIVE, EXIT_INCONCLUSIVE
    if by_evidence and (proof.born or (proof.lacking and worst == Status.EQUIVALENT)):
        return Status.DIVERGED, EXIT_DIVERGED
    if proof.unsound:  # that both recordings agree is luck, or is not what the trainers do alone
        return Status.INCONCLUSIVE, EXIT_INCONCLUSIVE
    return worst, EXIT_OK


def _facts(reference: Recording, comparer: Comparer, explanations: Sequence[Explanation]) -> Facts:
    parameters = sum(Size(entry.shape).numel() for entry in reference.structure.parameters)
    batch_size = next((str(e.values["batch"]) for e in explanations if "batch" in e.values), "")
    return Facts(parameters, batch_size, comparer.tensors, comparer.tensors_same, comparer.bytes)


def _side(recording: Recording) -> Side:
    trainer = recording.index.trainer
    name = "NeMo" if trainer.name == "nemo" else trainer.package or trainer.name
    buffers = frozenset(buffer.name for buffer in recording.structure.buffers)
    return Side(f"{name} {trainer.version}".strip(), str(recording.path), recording.index, recording.config, buffers)
