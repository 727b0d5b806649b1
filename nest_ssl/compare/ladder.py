"""Climbs the ladder: compares two recordings rung by rung, finds the first difference in causal order, and judges.

comparison = compare_recordings(open_recording("outputs/nemo"), open_recording("outputs/nest"), FixedTolerance())
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Size

from nest_ssl.base.errors import EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK, UserError
from nest_ssl.compare.causes import (
    StepFindings,
    cause_of,
    consequences,
    headline,
    in_causal_order,
    judge_calls,
    unexplained,
    unrecorded,
)
from nest_ssl.compare.comparison import Comparison, Explainer, Facts, Losses, Side
from nest_ssl.compare.declared import Entry, load_declared
from nest_ssl.compare.findings import RUNGS, SEVERITY, Rung, RungName, Status, Tally
from nest_ssl.compare.known import known_differences
from nest_ssl.compare.rules import Rule
from nest_ssl.compare.rules.fixed import FixedTolerance
from nest_ssl.compare.rungs.batch import compare_batch
from nest_ssl.compare.rungs.contract import compare_contract, note_sameness
from nest_ssl.compare.rungs.draws import compare_draws_before_the_steps, compare_draws_of_step, same_event
from nest_ssl.compare.rungs.forward import compare_calls, compare_forward_output, spans_of
from nest_ssl.compare.rungs.gradients import compare_output_gradients, compare_parameter_gradients
from nest_ssl.compare.rungs.initial_weights import Kinds, compare_initial_weights, kinds_of
from nest_ssl.compare.rungs.loss import compare_loss
from nest_ssl.compare.rungs.sheet import Sheet
from nest_ssl.compare.rungs.steps import compare_steps
from nest_ssl.compare.rungs.structure import compare_structure
from nest_ssl.compare.rungs.weights import compare_after_step
from nest_ssl.compare.values import Comparer
from nest_ssl.recording import layout
from nest_ssl.recording.calls import Call
from nest_ssl.recording.reader import Recording

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
        rule: what is `equivalent` where bits differ; `FixedTolerance()` when None.
        steps: only these; all recorded ones when None.
        declared: structural differences that are meant; the committed list when None.
        explainers: what else is to be said about each step.

    Raises:
        UserError: a step that neither recording has, or a damaged recording.
    """
    shared = _shared_steps(reference, candidate, steps)
    comparer = Comparer(rule or FixedTolerance())
    kinds = kinds_of(reference, candidate)
    run: dict[RungName, Sheet] = {
        name: Sheet(name, comparer) for name in ("contract", "structure", "initial_weights", "draws")
    }
    entries = load_declared() if declared is None else declared
    excused = compare_structure(run["structure"], reference, candidate, entries)
    before = compare_draws_before_the_steps(run["draws"], reference.index, candidate.index)
    compare_initial_weights(run["initial_weights"], reference, candidate, kinds)

    results: list[StepFindings] = []
    losses: list[Losses] = []
    changed = _modules(run["initial_weights"].tally)  # with own weights that differ by now
    for step in shared:
        known = None if unrecorded(shared, step) else changed
        for rank in range(min(reference.world_size, candidate.world_size)):
            result, loss = _compare_step(reference, candidate, comparer, kinds, step, rank)
            result.calls = judge_calls(result, known)
            losses += [loss] if loss and rank == 0 else []
            results.append(result)
        changed = changed.union(*(_modules(r.tallies["weights"]) for r in results if r.step == step))

    same_batches = bool(results) and all(r.tallies["batch"].status == Status.IDENTICAL for r in results)
    compare_contract(run["contract"], reference, candidate, steps, same_batches)
    note_sameness(run["contract"], reference, candidate)
    if not run["draws"].tally.compared and not run["draws"].tally.findings:
        del run["draws"]  # neither recording says anything of what came before the steps
    before_steps = [sheet.tally for sheet in run.values()]
    tallies = [*before_steps, *(result.tallies[name] for result in results for name in STEP_RUNGS)]
    trajectory = Sheet("steps", comparer)
    compare_steps(trajectory, results, shared)
    rungs = [Rung(name, [tally for tally in [*tallies, trajectory.tally] if tally.rung == name]) for name in RUNGS]

    ordered = in_causal_order(before_steps, results)
    first = headline(ordered)
    cause = None
    if first:
        its_step = next((r for r in results if (r.step, r.rank) == (first.moment.step, first.address.rank)), None)
        cause = cause_of(first, first is not ordered[0], its_step, before, shared)
    verdict, code = _judge(rungs)
    explanations = [e for explain in explainers for step in shared if (e := explain(reference, candidate, step))]
    return Comparison(
        reference=_side(reference),
        candidate=_side(candidate),
        steps=shared,
        rungs=rungs,
        verdict=verdict,
        exit_code=code,
        first=first,
        first_bits=next(iter(ordered), None),
        first_beyond=next((finding for finding in ordered if not finding.within), None),
        cause=cause,
        follows=consequences(first, tallies) if first else [],
        unexplained=unexplained(first, ordered, results, cause.module if cause else None) if first else [],
        calls=[call for result in results for call in result.calls],
        draws=[*before, *(draw for result in results for draw in result.draws)],
        losses=losses,
        explanations=explanations,
        declared=excused,
        known=known_differences(reference, candidate),
        rule=comparer.rule.describe(),
        facts=Facts(
            sum(Size(entry.shape).numel() for entry in reference.structure.parameters),
            next((str(e.values["batch"]) for e in explanations if "batch" in e.values), ""),
            comparer.tensors,
            comparer.tensors_same,
            comparer.bytes,
        ),
        notes=[note for tally in [*tallies, trajectory.tally] for note in chain(tally.absent, tally.notes)],
    )


def _compare_step(
    reference: Recording, candidate: Recording, comparer: Comparer, kinds: Kinds, step: int, rank: int
) -> tuple[StepFindings, Losses | None]:
    one, other = reference.step(step, rank), candidate.step(step, rank)
    sheets = {name: Sheet(name, comparer, step, rank) for name in STEP_RUNGS}
    result = StepFindings(step, rank, {name: sheet.tally for name, sheet in sheets.items()})
    compare_batch(sheets["batch"], one, other)
    calls: tuple[list[Call], list[Call]] = ([], [])
    if sheets["forward"].both_have(layout.CALLS, one, other):
        calls = one.calls(), other.calls()
        if not all(calls):
            sheets["forward"].nothing("no_call", step=step)
        compare_calls(sheets["forward"], *calls)
    if sheets["draws"].both_have(layout.RNG, one, other):
        result.draws = compare_draws_of_step(sheets["draws"], one.rng(), other.rng(), same_event(*calls))
    compare_forward_output(sheets["forward"], one, other)
    loss = compare_loss(sheets["loss"], one, other)
    result.spans = spans_of(calls[0])
    result.reached = compare_output_gradients(sheets["gradients"], *calls)
    compare_parameter_gradients(sheets["gradients"], one, other, calls[0])
    compare_after_step(sheets["weights"], one, other, kinds)
    return result, loss


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


def _side(recording: Recording) -> Side:
    trainer = recording.index.trainer
    name = "NeMo" if trainer.name == "nemo" else trainer.package or trainer.name
    return Side(f"{name} {trainer.version}".strip(), str(recording.path), recording.index, recording.config)
