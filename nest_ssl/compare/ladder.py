"""Climbs the ladder: compares two recordings rung by rung, finds the first difference in causal order, and judges.

comparison = compare_recordings(open_recording("outputs/nemo"), open_recording("outputs/nest"), FixedTolerance())
"""

from __future__ import annotations

from collections.abc import Sequence

from nest_ssl.base.errors import EXIT_CONTRACT_DIFFERS, EXIT_DIVERGED, EXIT_INCONCLUSIVE, EXIT_OK, UserError
from nest_ssl.compare.account import account_for_loss, count_parameters, describe_batch
from nest_ssl.compare.backward import compare_output_gradients, compare_parameter_gradients, sort_backward
from nest_ssl.compare.calls import compare_calls
from nest_ssl.compare.contract import compare_contract
from nest_ssl.compare.declared import Entry, load_declared
from nest_ssl.compare.draws import Clock, compare_draws_before_the_steps, compare_draws_of_step
from nest_ssl.compare.explain import not_explained, what_follows
from nest_ssl.compare.generations import known_differences
from nest_ssl.compare.localise import StepResult, birthplace, judge_calls, origin
from nest_ssl.compare.order import STEP_RUNGS, all_in_order, within_step
from nest_ssl.compare.result import (
    DIVERGED,
    EQUIVALENT,
    IDENTICAL,
    INCONCLUSIVE,
    MISSING,
    NOT_COMPARED,
    RUNGS,
    SEVERITY,
    Comparison,
    Declared,
    Difference,
    Draw,
    Facts,
    LossAccount,
    Rung,
    Side,
    Tally,
)
from nest_ssl.compare.structure import compare_structure
from nest_ssl.compare.tables import (
    both_have,
    compare_after_step,
    compare_batch,
    compare_forward_output,
    compare_initial_weights,
    compare_loss,
    units_of,
)
from nest_ssl.compare.tolerance import Tolerance
from nest_ssl.compare.values import Comparer
from nest_ssl.recording import layout as files
from nest_ssl.recording.reader import Recording, StepFiles

FLOW_RUNGS = ("forward", "loss", "gradients", "weights")  # what numbers flow through, each from the one before


def compare_recordings(
    reference: Recording,
    candidate: Recording,
    tolerance: Tolerance,
    steps: Sequence[int] | None = None,
    declared: list[Entry] | None = None,
) -> Comparison:
    """Compare two recordings.

    Args:
        steps: only these; all recorded ones when None.
        declared: structural differences that are meant; the committed list when None.

    Raises:
        UserError: a step that neither recording has, or a damaged recording.
    """
    return _Climb(reference, candidate, tolerance, steps, load_declared() if declared is None else declared).compare()


class _Climb:
    """One comparison in progress."""

    def __init__(
        self,
        reference: Recording,
        candidate: Recording,
        tolerance: Tolerance,
        steps: Sequence[int] | None,
        entries: list[Entry],
    ) -> None:
        self.reference, self.candidate = reference, candidate
        self.comparer = Comparer(tolerance)
        self.asked, self.entries = steps, entries
        self.steps = _shared_steps(reference, candidate, steps)
        self.units = units_of(reference, candidate)
        self.losses: list[LossAccount] = []
        self.before_fit: list[Draw] = []
        self.changed: set[str | None] = set()  # modules whose own weights differ by now

    def compare(self) -> Comparison:
        structure, declared = compare_structure(self.reference, self.candidate, self.entries)
        draws, self.before_fit = compare_draws_before_the_steps(self.reference.index, self.candidate.index)
        run = {
            "contract": compare_contract(self.reference, self.candidate, self.asked),
            "structure": structure,
            "initial_weights": compare_initial_weights(self.reference, self.candidate, self.comparer),
            "draws": draws,
        }
        self.changed |= _modules(run["initial_weights"])
        ranks = range(min(self.reference.world_size, self.candidate.world_size))
        results = []
        for step in self.steps:
            found = [self._step(step, rank) for rank in ranks]
            self.changed |= {name for result in found for name in _modules(result.tallies["weights"])}
            results += found
        if not draws.compared and not draws.differences:
            del run["draws"]  # neither recording tells anything of what came before the steps
        return self._conclude(run, results, declared)

    def _step(self, step: int, rank: int) -> StepResult:
        ours, theirs = self.reference.step(step, rank), self.candidate.step(step, rank)
        result = StepResult(step, rank, {name: Tally(name, step, rank) for name in STEP_RUNGS})
        tallies = result.tallies
        compare_batch(tallies["batch"], ours, theirs, self.comparer)
        self._calls(result, ours, theirs)
        compare_loss(tallies["loss"], ours, theirs, self.comparer)
        compare_after_step(tallies["weights"], ours, theirs, self.comparer, self.units)
        account = account_for_loss(step, ours, theirs, self.reference.config)
        self.losses += [account] if account and rank == 0 else []
        return result

    def _calls(self, result: StepResult, ours: StepFiles, theirs: StepFiles) -> None:
        """Random draws, the forward and the gradients; all need the file of calls, which is mapped once."""
        forward, gradients = result.tallies["forward"], result.tallies["gradients"]
        calls: tuple[list, list] = ([], [])
        if both_have(forward, files.CALLS, ours, theirs):
            calls = ours.calls(), theirs.calls()
            if not all(calls):
                forward.absent.append(f"step {result.step}: no call was recorded")
            self.comparer.forget()
            result.forward = compare_calls(forward, *calls, self.comparer)
        if both_have(result.tallies["draws"], files.RNG, ours, theirs):
            tables = ours.rng(), theirs.rng()
            result.draws = compare_draws_of_step(result.tallies["draws"], *tables, Clock(*calls))
        if result.forward:
            changed = None if _unrecorded(self.steps, result.step) else self.changed
            result.judgements = judge_calls(result, changed)
        compare_forward_output(forward, ours, theirs, self.comparer)
        self.comparer.forget()
        result.backward = compare_output_gradients(gradients, *calls, self.comparer)
        if both_have(gradients, files.GRADIENTS, ours, theirs):
            self.comparer.forget()
            compare_parameter_gradients(gradients, ours.gradients(), theirs.gradients(), self.comparer)
        sort_backward(gradients, calls[0])

    def _conclude(self, run: dict[str, Tally], results: list[StepResult], declared: list[Declared]) -> Comparison:
        tallies = [*run.values(), *(result.tallies[name] for result in results for name in STEP_RUNGS)]
        steps = _steps_tally(results, self.steps)
        rungs = [Rung(name, [tally for tally in [*tallies, steps] if tally.rung == name]) for name in RUNGS]
        ordered = all_in_order(run, results)
        first = headline(ordered)
        first_bits = next(iter(ordered), None)
        verdict, code = _judge(rungs)
        return Comparison(
            reference=_side(self.reference),
            candidate=_side(self.candidate),
            steps=self.steps,
            rungs=rungs,
            verdict=verdict,
            exit_code=code,
            first=first,
            first_bits=first_bits,
            first_beyond=_first_beyond(ordered),
            born_in=birthplace(first, _result_of(first, results)) if first else None,
            origin=_origin(first, first_bits, results, self.before_fit, self.steps),
            follows=what_follows(first, run, results) if first else [],
            unexplained=not_explained(first, ordered, results) if first else [],
            judgements=[judgement for result in results for judgement in result.judgements],
            draws=[*self.before_fit, *(draw for result in results for draw in result.draws)],
            losses=self.losses,
            declared=declared,
            known=known_differences(self.reference, self.candidate),
            tolerance=self.comparer.tolerance.describe(),
            facts=self._facts(),
            notes=[note for tally in [*tallies, steps] for note in [*tally.absent, *tally.notes]],
        )

    def _facts(self) -> Facts:
        batch = describe_batch(self.reference, self.reference.step(self.steps[0])) if self.steps else ""
        comparer = self.comparer
        return Facts(count_parameters(self.reference), batch, comparer.tensors, comparer.tensors_same, comparer.bytes)


def _shared_steps(reference: Recording, candidate: Recording, asked: Sequence[int] | None) -> list[int]:
    recorded = set(reference.steps) | set(candidate.steps)
    for step in asked or ():
        if step not in recorded:
            have = ", ".join(map(str, sorted(recorded))) or "none"
            raise UserError("a step that neither recording has", f"--steps {step}", f"Recorded steps: {have}.")
    shared = set(reference.steps) & set(candidate.steps)
    return sorted(shared if asked is None else shared & set(asked))


def headline(ordered: list[Difference]) -> Difference | None:
    """Of all differences in causal order the one to put first.

    That is the first one beyond the tolerance, traced back: a tensor that flows through the model may differ because a
    smaller difference upstream has grown, so the first unlike bits are its origin as far as anybody can tell. A
    setting, a shape, a missing name, a batch or an initial weight cannot have grown so, and stands for itself.
    """
    beyond = _first_beyond(ordered)
    if beyond is None or (beyond.metrics and beyond.place.rung in FLOW_RUNGS):
        return next(iter(ordered), None)
    return beyond


def _first_beyond(ordered: list[Difference]) -> Difference | None:
    return next((difference for difference in ordered if not difference.within), None)


def _modules(tally: Tally) -> set[str | None]:
    return {difference.place.module for difference in tally.differences}


def _judge(rungs: list[Rung]) -> tuple[str, int]:
    statuses = {rung.name: rung.status for rung in rungs}
    if statuses["contract"] != IDENTICAL:
        return INCONCLUSIVE, EXIT_CONTRACT_DIFFERS
    if {DIVERGED, MISSING} & set(statuses.values()):
        return DIVERGED, EXIT_DIVERGED
    if NOT_COMPARED in statuses.values():
        return INCONCLUSIVE, EXIT_INCONCLUSIVE
    return (EQUIVALENT if EQUIVALENT in statuses.values() else IDENTICAL), EXIT_OK


def _steps_tally(results: list[StepResult], steps: list[int]) -> Tally:
    """Where the trajectories part: a step counts as differing by the first difference in it."""
    tally = Tally("steps")
    for step in steps:
        found = [difference for r in results if r.step == step for difference in within_step(r)]
        worst = next((d for d in found if not d.within), found[0] if found else None)
        tally.item("steps", [worst] if worst else [])
        statuses = [t.status for r in results if r.step == step for t in r.tallies.values()]
        if max(statuses, key=SEVERITY.index) == NOT_COMPARED:
            tally.absent.append(f"step {step}: not every rung could be compared")
    parted = [r.step for r in results if r.tallies["weights"].differences]
    if parted:
        tally.notes.append(f"Weights part after step {min(parted)}.")
    return tally


def _origin(
    first: Difference | None,
    first_bits: Difference | None,
    results: list[StepResult],
    before_fit: list[Draw],
    steps: list[int],
) -> str:
    if first is None:
        return ""
    if first is not first_bits:
        return "Bits part before it, within the tolerance, but this cannot have grown from that."
    gap = "" if first.place.step is None else _unrecorded(steps, first.place.step)
    return origin(first, _result_of(first, results), before_fit) + gap


def _result_of(first: Difference, results: list[StepResult]) -> StepResult | None:
    place = first.place
    return next((result for result in results if (result.step, result.rank) == (place.step, place.rank)), None)


def _unrecorded(steps: list[int], step: int) -> str:
    """A warning if steps just before `step` were not recorded; else empty."""
    last = max((earlier for earlier in steps if earlier < step), default=-1)
    if step == last + 1:
        return ""
    gap = f"Step {last + 1} was" if step == last + 2 else f"Steps {last + 1} to {step - 1} were"
    return f" {gap} not recorded: it may have been born there."


def _side(recording: Recording) -> Side:
    return Side(_label(recording), str(recording.path), recording.index, recording.config)


def _label(recording: Recording) -> str:
    """The trainer as people call it: ``NeMo 3.0.0``, ``nest-ssl 0.1.0``."""
    trainer = recording.index["trainer"]
    name = "NeMo" if trainer.get("name") == "nemo" else str(trainer.get("package") or trainer.get("name"))
    return f"{name} {trainer.get('version', '')}".strip()
