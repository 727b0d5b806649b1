"""Climbs the ladder: compares two recordings rung by rung, finds the first difference in causal order, and judges.

comparison = compare_recordings(open_recording("outputs/nemo"), open_recording("outputs/nest"))
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from torch import Size

from nest_ssl.base.errors import EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK, UserError
from nest_ssl.compare import causes
from nest_ssl.compare.causes import StepFindings
from nest_ssl.compare.comparison import Comparison, Declared, Explainer, Explanation, Facts, Side
from nest_ssl.compare.declared import Entry
from nest_ssl.compare.evidence import Evidence
from nest_ssl.compare.findings import OPTIONAL_RUNGS, RUNGS, SEVERITY, STEP_RUNGS, Draw, Rung, RungName, Status, Tally
from nest_ssl.compare.known import known_differences
from nest_ssl.compare.proof import Agreement, Float64, Proof, weigh
from nest_ssl.compare.roots import roots_of
from nest_ssl.compare.rules import Rule
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rules.float64 import Float64Rule
from nest_ssl.compare.rules.known import Known, KnownRule
from nest_ssl.compare.rules.noise_floor import NoiseFloorRule, excuse_flips, growth_of
from nest_ssl.compare.rules.same_function import AGREE, has_float32_values
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
from nest_ssl.compare.unseen import unseen_by
from nest_ssl.compare.values import Comparer
from nest_ssl.recording import layout
from nest_ssl.recording.calls import Call
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
    shared = _shared_steps(reference, candidate, steps)
    ledger = KnownRule(rule or (NoiseFloorRule(evidence) if evidence and evidence.floors else SameBits()), known)
    comparer = Comparer(ledger)
    own, excused, before, results = _compare_all(reference, candidate, comparer, shared, steps, declared, evidence)
    tallies = [*own, *(tally for result in results for tally in result.tallies.values() if not tally.unrecorded)]
    ordered = causes.in_causal_order(tallies, results)
    first = causes.headline(ordered)
    cause = causes.cause_of(first, results, before, shared, grown=first is not ordered[0]) if first else None
    whole = [*tallies, compare_steps(Sheet("steps", comparer), results, shared)]
    by_rung = [Rung(name, [tally for tally in whole if tally.rung == name]) for name in RUNGS]
    in64 = _in_float64(evidence, declared)
    proof = weigh(reference, evidence or Evidence(), ordered, roots_of(own, before, results), results, in64, known)
    explanations = [e for explain in explainers for step in shared if (e := explain(reference, candidate, step))]
    return Comparison(
        _side(reference),
        _side(candidate),
        shared,
        rungs := [rung for rung in by_rung if rung.tallies or rung.name not in OPTIONAL_RUNGS],
        *_judge(rungs, proof if rule is None and proof.had else None),
        first,
        next(iter(ordered), None),
        next((finding for finding in ordered if not finding.within), None),
        cause,
        causes.consequences(first, tallies) if first else [],
        causes.unexplained(first, ordered, results, cause) if first else [],
        calls=[call for result in results for call in result.calls],
        draws=[*before, *(draw for result in results for draw in result.draws)],
        losses=[result.loss for result in results if result.loss and result.rank == 0],
        explanations=explanations,
        declared=excused,
        known=known_differences(reference, candidate),
        rule=comparer.rule.describe(),
        facts=_facts(reference, comparer, explanations),
        notes=[note for tally in whole for note in chain(tally.absent, tally.notes)],
        proof=proof,
        unseen=unseen_by(reference, shared, evidence),
        ledger=ledger.used(),
    )


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
    excused = structure.compare_structure(run["structure"], reference, candidate, declared)
    start = contract.resumed_at(reference, candidate)
    before = (
        draws.compare_draws_before_the_steps(run["draws"], reference.index, candidate.index) if start is None else []
    )
    initial_weights.compare_initial_weights(run["initial_weights"], reference, candidate, start)
    changed = _modules(run["initial_weights"].tally)
    results = _compare_steps(reference, candidate, comparer, shared, changed, evidence)
    contract.compare_contract(run["contract"], reference, candidate, steps, [r.tallies["batch"] for r in results])
    if evidence and evidence.stale:
        run["contract"].note("stale_evidence", where=evidence.stale)
    if isinstance(comparer.rule, KnownRule):
        run["structure"].tally.findings += comparer.rule.out_of_date()
    tallies = [sheet.tally for sheet in run.values()]
    tallies += validation.compare_validations(comparer, reference, candidate, steps)
    return [tally for tally in tallies if not tally.unrecorded], excused, before, results


def _in_float64(evidence: Evidence | None, declared: Sequence[Entry] | None) -> Float64:
    """Both trainers in float64, compared with each other by their numbers alone."""
    if evidence is None or evidence.float64 is None:
        return Float64()
    compared = compare_recordings(*evidence.float64, Float64Rule(evidence), declared=declared)
    found = [one for rung in compared.rungs if rung.name not in _NO_NUMBERS for one in rung.findings]
    beyond = frozenset((one.moment.step, one.address) for one in found if not one.within)
    agreeing = [one.judgement for one in found if one.judgement and one.within and one.judgement.rule == "float64"]
    sizes = [(one.ratio or 0.0) * AGREE for one in agreeing if one.bound["relative"] == AGREE]
    first = min((one for one in found if not one.within), key=lambda one: one.moment, default=None)
    largest = max(sizes, default=0.0)
    if first is None:
        return Float64(Agreement.AGREES, largest)
    float32 = has_float32_values(evidence.float64[0], first.moment.step, first.address)
    return Float64(Agreement.FLOAT32 if float32 else Agreement.DIFFERS, largest, first, beyond)


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
    for step in shared:
        for rank in range(min(reference.world_size, candidate.world_size)):
            results.append(_compare_step(reference, candidate, comparer, kinds, step, rank))
            started = results[-1].tallies["start"]
            known = started.compared["parameters"] or not causes.unrecorded(shared, step)
            results[-1].calls = causes.judge_calls(results[-1], changed | _modules(started) if known else None)
            if evidence:
                evidence.growths[step + 1, rank] = growth_of(results[-1].tallies["weights"])
        changed = changed.union(*(_modules(r.tallies["weights"]) for r in results if r.step == step))
    tallies = [tally for result in results for tally in result.tallies.values()]
    excuse_flips(tallies)
    if isinstance(comparer.rule, KnownRule):
        comparer.rule.follow(tallies)
    return results


def _compare_step(
    reference: Recording, candidate: Recording, comparer: Comparer, kinds: initial_weights.Kinds, step: int, rank: int
) -> StepFindings:
    sides = reference.step(step, rank), candidate.step(step, rank)
    sheets = {name: Sheet(name, comparer, step, rank) for name in STEP_RUNGS}
    result = StepFindings(step, rank, {name: sheet.tally for name, sheet in sheets.items()})
    modes = [{m.name: m.training for m in recording.structure.modules} for recording in (reference, candidate)]
    start.compare_start(sheets["start"], *sides, kinds, (modes[0], modes[1]))
    batch.compare_batch(sheets["batch"], *sides)
    calls: tuple[list[Call], list[Call]] = ([], [])
    if sheets["forward"].both_have(layout.CALLS, *sides):
        calls = sides[0].calls(), sides[1].calls()
        result.spans = forward.compare_calls(sheets["forward"], *calls)
    if sheets["draws"].both_have(layout.RNG, *sides):
        event = draws.same_event(*calls)
        result.draws = draws.compare_draws_of_step(sheets["draws"], sides[0].rng(), sides[1].rng(), event)
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


def _judge(rungs: Sequence[Rung], proof: Proof | None) -> tuple[Status, int]:
    """The verdict; with a `proof` what is within the noise floor is rounding only if nothing speaks against it."""
    statuses = {rung.name: rung.status for rung in rungs}
    if statuses["contract"] != Status.IDENTICAL:
        return Status.INCONCLUSIVE, EXIT_CONTRACT_DIFFERS
    worst = max(statuses.values(), key=SEVERITY.index)
    if worst in (Status.DIVERGED, Status.MISSING):
        return Status.DIVERGED, EXIT_DIVERGED
    if worst == Status.NOT_COMPARED:
        return Status.INCONCLUSIVE, EXIT_INCONCLUSIVE
    if proof and (proof.born or (proof.lacking and worst == Status.EQUIVALENT)):
        return Status.DIVERGED, EXIT_DIVERGED
    return worst, EXIT_OK


def _facts(reference: Recording, comparer: Comparer, explanations: Sequence[Explanation]) -> Facts:
    parameters = sum(Size(entry.shape).numel() for entry in reference.structure.parameters)
    batch_size = next((str(e.values["batch"]) for e in explanations if "batch" in e.values), "")
    return Facts(parameters, batch_size, comparer.tensors, comparer.tensors_same, comparer.bytes)


def _side(recording: Recording) -> Side:
    trainer = recording.index.trainer
    name = "NeMo" if trainer.name == "nemo" else trainer.package or trainer.name
    return Side(f"{name} {trainer.version}".strip(), str(recording.path), recording.index, recording.config)
