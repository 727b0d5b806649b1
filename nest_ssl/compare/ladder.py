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
from nest_ssl.compare.comparison import Comparison, Explainer, Explanation, Facts, Side
from nest_ssl.compare.declared import Entry
from nest_ssl.compare.findings import RUNGS, SEVERITY, Rung, RungName, Status, Tally
from nest_ssl.compare.known import known_differences
from nest_ssl.compare.rules import Rule
from nest_ssl.compare.rules.bits import SameBits
from nest_ssl.compare.rungs import batch, contract, draws, forward, gradients, initial_weights, loss, structure, weights
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.rungs.steps import compare_steps
from nest_ssl.compare.values import Comparer
from nest_ssl.recording import layout
from nest_ssl.recording.calls import Call
from nest_ssl.recording.reader import Recording

RUN_RUNGS: tuple[RungName, ...] = ("contract", "structure", "initial_weights", "draws")
STEP_RUNGS: tuple[RungName, ...] = ("batch", "draws", "forward", "loss", "gradients", "weights")


def compare_recordings(
    reference: Recording,
    candidate: Recording,
    rule: Rule | None = None,
    steps: Sequence[int] | None = None,
    declared: Sequence[Entry] | None = None,
    explainers: Sequence[Explainer] = (),
) -> Comparison:
    """Compare two recordings.

    Args:
        rule: what is let pass where bits differ; nothing (`SameBits()`) when None.
        steps: only these; all recorded ones when None.
        declared: structural differences that are meant; the committed list when None.
        explainers: what else is to be said about each step.

    Raises:
        UserError: a step that neither recording has, or a damaged recording.
    """
    shared = _shared_steps(reference, candidate, steps)
    comparer = Comparer(rule or SameBits())
    run = {name: Sheet(name, comparer) for name in RUN_RUNGS}
    excused = structure.compare_structure(run["structure"], reference, candidate, declared)
    before = draws.compare_draws_before_the_steps(run["draws"], reference.index, candidate.index)
    initial_weights.compare_initial_weights(run["initial_weights"], reference, candidate)
    results = _compare_steps(reference, candidate, comparer, shared, _modules(run["initial_weights"].tally))
    contract.compare_contract(run["contract"], reference, candidate, steps, [r.tallies["batch"] for r in results])
    if not run["draws"].tally.compared and not run["draws"].tally.findings:
        del run["draws"]  # neither recording says anything of what came before the steps
    tallies = [*(sheet.tally for sheet in run.values()), *(t for r in results for t in r.tallies.values())]
    ordered = causes.in_causal_order(tallies, results)
    first = causes.headline(ordered)
    cause = causes.cause_of(first, results, before, shared, grown=first is not ordered[0]) if first else None
    trajectory = compare_steps(Sheet("steps", comparer), results, shared)
    rungs = [Rung(name, [tally for tally in [*tallies, trajectory] if tally.rung == name]) for name in RUNGS]
    explanations = [e for explain in explainers for step in shared if (e := explain(reference, candidate, step))]
    return Comparison(
        _side(reference),
        _side(candidate),
        shared,
        rungs,
        *_judge(rungs),
        first,
        first_bits=ordered[0] if ordered else None,
        first_beyond=next((finding for finding in ordered if not finding.within), None),
        cause=cause,
        follows=causes.consequences(first, tallies) if first else [],
        unexplained=causes.unexplained(first, ordered, results, cause) if first else [],
        calls=[call for result in results for call in result.calls],
        draws=[*before, *(draw for result in results for draw in result.draws)],
        losses=[result.loss for result in results if result.loss and result.rank == 0],
        explanations=explanations,
        declared=excused,
        known=known_differences(reference, candidate),
        rule=comparer.rule.describe(),
        facts=_facts(reference, comparer, explanations),
        notes=[note for tally in [*tallies, trajectory] for note in chain(tally.absent, tally.notes)],
    )


def _compare_steps(
    reference: Recording,
    candidate: Recording,
    comparer: Comparer,
    shared: Sequence[int],
    changed: frozenset[str | None],
) -> list[StepFindings]:
    """All steps of all ranks; `changed` are the modules with own weights that differ before the first one."""
    kinds = initial_weights.kinds_of(reference, candidate)
    results: list[StepFindings] = []
    for step in shared:
        known = None if causes.unrecorded(shared, step) else changed
        for rank in range(min(reference.world_size, candidate.world_size)):
            results.append(_compare_step(reference, candidate, comparer, kinds, step, rank))
            results[-1].calls = causes.judge_calls(results[-1], known)
        changed = changed.union(*(_modules(r.tallies["weights"]) for r in results if r.step == step))
    return results


def _compare_step(
    reference: Recording, candidate: Recording, comparer: Comparer, kinds: initial_weights.Kinds, step: int, rank: int
) -> StepFindings:
    sides = reference.step(step, rank), candidate.step(step, rank)
    sheets = {name: Sheet(name, comparer, step, rank) for name in STEP_RUNGS}
    result = StepFindings(step, rank, {name: sheet.tally for name, sheet in sheets.items()})
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
    gradients.compare_parameter_gradients(sheets["gradients"], *sides, calls[0])
    before = weights.weights_before(reference, step, rank), weights.weights_before(candidate, step, rank)
    weights.compare_after_step(sheets["weights"], *sides, kinds, before, sheets["gradients"].tally.findings)
    return result


def _shared_steps(reference: Recording, candidate: Recording, asked: Sequence[int] | None) -> list[int]:
    recorded = {*reference.steps, *candidate.steps}
    for step in asked or ():
        if step not in recorded:
            have = ", ".join(map(str, sorted(recorded))) or "none"
            raise UserError("a step that neither recording has", f"--steps {step}", f"Recorded steps: {have}.")
    shared = set(reference.steps) & set(candidate.steps)
    return sorted(shared if asked is None else shared & set(asked))


def _modules(tally: Tally) -> frozenset[str | None]:
    return frozenset(finding.address.module for finding in tally.findings)


def _judge(rungs: Sequence[Rung]) -> tuple[Status, int]:
    statuses = {rung.name: rung.status for rung in rungs}
    if statuses["contract"] != Status.IDENTICAL:
        return Status.INCONCLUSIVE, EXIT_CONTRACT_DIFFERS
    worst = max(statuses.values(), key=SEVERITY.index)
    if worst in (Status.DIVERGED, Status.MISSING):
        return Status.DIVERGED, EXIT_DIVERGED
    return (Status.INCONCLUSIVE, EXIT_INCONCLUSIVE) if worst == Status.NOT_COMPARED else (worst, EXIT_OK)


def _facts(reference: Recording, comparer: Comparer, explanations: Sequence[Explanation]) -> Facts:
    parameters = sum(Size(entry.shape).numel() for entry in reference.structure.parameters)
    batch_size = next((str(e.values["batch"]) for e in explanations if "batch" in e.values), "")
    return Facts(parameters, batch_size, comparer.tensors, comparer.tensors_same, comparer.bytes)


def _side(recording: Recording) -> Side:
    trainer = recording.index.trainer
    name = "NeMo" if trainer.name == "nemo" else trainer.package or trainer.name
    return Side(f"{name} {trainer.version}".strip(), str(recording.path), recording.index, recording.config)
