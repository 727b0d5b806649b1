"""Which runs gather the evidence about two recordings, and what is made of them when they are done.

    jobs = plan(reference, candidate, Path("outputs/evidence"), kinds := ["replay", "float64", "floor"])
    ...                                   # each job is a command for one trainer's Python: `nest-ssl explain` runs them
    gathered = collect(reference, candidate, Path("outputs/evidence"), kinds)

An evidence run is the trainer's own entry point on the configuration that the recording has. Runs of one trainer share
a process (``--then``), since importing it takes longer than training a small model.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nest_ssl.base.errors import UserError
from nest_ssl.base.nested import pairs
from nest_ssl.base.spelling import did_you_mean
from nest_ssl.compare.operators import bind
from nest_ssl.compare.schedules import bind_rates
from nest_ssl.recording import evidence as files
from nest_ssl.recording.evidence import (
    Check,
    Gathered,
    Gathering,
    NoiseFloor,
    Observer,
    Replay,
    ValidationFloor,
    read_evidence,
    seal_of,
    write_evidence,
)
from nest_ssl.recording.index import Index
from nest_ssl.recording.layout import INDEX, OPERATORS, step_folder
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.releases import GENERATIONS
from nest_ssl.run.compared import refuse_ranks
from nest_ssl.run.doctor import size

Side = Literal["reference", "candidate"]
What = Literal["repeats", "unwatched", "restarts"]
SIDES: tuple[Side, Side] = ("reference", "candidate")
REPEATS = 8  # that make the noise floor
SMALL = 2_000_000  # parameters of a model that is trained without a recorder, too, whether that is asked for or not
SCRIPTS = {"nemo_toolkit": "scripts/train_nemo.py", "nest-ssl": "scripts/train_nest.py"}  # by package
START = 8.0  # seconds until a trainer is imported
RATES = 100_000  # steps of a schedule, worked out without training
WRITERS = {"float64": files.FLOAT64, "floor": files.FLOOR}  # kinds that take room, in their order, and their folders
BARE, TRACED = "bare", "traced"  # folders of runs without a recorder, and of those whose operators are recorded

FAILED = "its run failed, see the logs in this folder"
STOPPED = "it was interrupted"

# What is not known where a kind is missing.
COSTS = {
    "replay": "which modules have another function is not known, only where the two part first",
    "float64": "a small bug and rounding are kept apart by the noise floor alone",
    "floor": "what rounding alone does to a tensor is not known, so nothing can be called rounding",
    "operators": "which operators differ, and in which lines, is not shown",
    "schedule": "learning rates behind the recorded steps are not compared",
    "observer": "that recording changed nothing is known from tests, not from this run",
}
KINDS = tuple(COSTS)


@dataclass(frozen=True)
class Job:
    """A command for the Python of one side.

    Args:
        log: name of its log, without the ending.
        side: jobs of one side run one after the other.
        what: in a word or two.
        words: of its command line, behind the interpreter.
        seconds: that it will take, by how long the recording took.
        needs: files without which it is not begun; jobs of the other side may be writing them.
    """

    log: str
    side: Side
    what: str
    words: list[str]
    seconds: float
    needs: tuple[Path, ...] = ()


@dataclass
class _Runs:
    """The evidence runs of one trainer, in the order in which they share a process."""

    side: Side
    recording: Recording
    folder: Path
    each: list[tuple[str, list[str], float]] = field(default_factory=list)  # what, overrides, how many times as long

    def add(self, what: str, target: str, times: float, *overrides: str) -> None:
        self.each.append((what, [f"output_dir={self.folder / target}", *overrides], times))

    def job(self) -> Job:
        seconds = self.recording.index.duration_s
        words = [SCRIPTS[self.recording.index.trainer.package]]
        for place, (_, overrides, _) in enumerate(self.each):
            words += ["--then"] if place else []
            words += ["--config-path", str(self.recording.path), "--config-name", "config", *overrides]
            words += ["overwrite=true", "exp_manager=null", "trainer.logger=false", "stop_when_recorded=true"]
            words += ["trainer.stall_timeout=null"]  # a step that is repeated takes longer
        what = ", ".join(what for what, _, _ in self.each)
        expected = START + sum(times * seconds for _, _, times in self.each)
        return Job(f"explain-{self.side}", self.side, what, words, expected)


def kinds_to_gather(text: str, reference: Recording, candidate: Recording) -> list[str]:
    """The kinds that a list with commas names; an empty one means all that take no second training of a large model.

    Raises:
        UserError: there is no such kind, or the recordings are of several processes.
    """
    refuse_ranks(reference, candidate)
    named = [word.strip() for word in text.split(",") if word.strip()]
    for word in named:
        if word not in KINDS:
            raise UserError("no such evidence", word, f"{did_you_mean(word, KINDS)} Kinds: {', '.join(KINDS)}.")
    parameters = sum(math.prod(entry.shape) for entry in reference.structure.parameters)
    default = [kind for kind in KINDS if kind != "observer" or parameters < SMALL]
    return [kind for kind in KINDS if kind in (named or default)]


def plan(
    reference: Recording, candidate: Recording, folder: Path, kinds: Sequence[str], names: Path | None = None
) -> list[Job]:
    """The jobs that gather the kinds of evidence, of `KINDS`, that can be had, into `folder`.

    Args:
        names: a map of the candidate's names of modules to the reference's.
    """
    hindered = hindrances(kinds, reference, candidate, folder)
    wanted = [kind for kind in kinds if kind not in hindered]
    runs = {side: _Runs(side, one, folder) for side, one in zip(SIDES, (reference, candidate), strict=True)}
    twice = dict(zip(SIDES, files.float64_names(reference.path, candidate.path), strict=True))
    traced = [*(["operators=true"] if "operators" in wanted else [])]
    traced += [f"learning_rates={RATES}"] if "schedule" in wanted else []
    what = " and ".join(kind for kind in ("operators", "schedule") if kind in wanted)
    shown = _shown(reference, candidate)
    for side, run in runs.items():
        if "float64" in wanted:  # first: the other side is waiting for it, to be replayed
            run.add("float64", f"{files.FLOAT64}/{twice[side]}", 2.0, "trainer.precision=64-true")
        if "floor" in wanted and side == "reference":  # the same run is traced
            both = " and ".join(["noise floor", *([what] if what else [])])
            run.add(both, files.FLOOR, 4.0, f"noise_floor={REPEATS}", *traced)
        elif traced:
            step = run.recording.steps[0] if shown is None else shown
            run.add(what, f"{TRACED}/{side}", 0.5, "record=operators", f"save_steps={step}", *traced)
        if "observer" in wanted:
            run.add("without a recorder", f"{BARE}/{side}", 1.0, "save_steps=none")
    jobs = [run.job() for run in runs.values() if run.each]
    # Whoever plans has checked the recordings; those in float64 are checked when they are compared.
    more = ["--no-verify", *(["--names", str(names)] if names else [])]
    if "replay" in wanted:
        ends = reference.path, candidate.path, folder / files.REPLAY
        jobs.append(_replay("explain-replay", ends, reference.index, more))
    if {"replay", "float64"} <= {*wanted}:
        double = folder / files.FLOAT64
        ends = double / twice["reference"], double / twice["candidate"], double / files.REPLAY
        jobs.append(_replay("explain-replay-float64", ends, reference.index, [*more, "--precision", "float64"]))
    return jobs


def _shown(reference: Recording, candidate: Recording) -> int | None:
    """The step whose operators are shown: the first that both recorded."""
    return min({*reference.steps} & {*candidate.steps}, default=None)


def _replay(log: str, ends: tuple[Path, Path, Path], index: Index, more: Sequence[str]) -> Job:
    options = zip(("--reference", "--candidate", "--out"), map(str, ends), strict=True)
    words = ["-m", "nest_ssl.cli.main", "replay", *(word for pair in options for word in pair), *more]
    needs = ends[0] / INDEX, ends[1] / INDEX
    return Job(log, "candidate", "replay", words, START + index.duration_s, needs)


def hindrances(kinds: Sequence[str], reference: Recording, candidate: Recording, folder: Path) -> dict[str, str]:
    """Why kinds of evidence cannot be had together in `folder`, by kind; without those that nothing is known against.

    What they write is held against the free space together: recordings in float64 stay while the noise floor is
    measured. What is there of these kinds is written over, and so is room; what is there of others stays.
    """
    found = {kind: reason for kind in kinds if (reason := hindrance(kind, reference, candidate))}
    writers = {kind: made for kind, made in WRITERS.items() if kind in kinds}
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    there = [path for name in writers.values() for path in (folder / name).rglob("*") if path.is_file()]
    free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in there)
    for kind in (kind for kind in writers if kind not in found):
        written = [reference] if kind == "floor" else [reference, candidate] * 2  # as it is; twice as wide
        needed = sum(entry.bytes for recording in written for entry in recording.index.files.values())
        if needed > free:
            found[kind] = f"it writes {size(needed)}, and {size(free)} are free at {place}"
        else:
            free -= needed
    return found


def hindrance(kind: str, reference: Recording, candidate: Recording) -> str:
    """Why a kind of evidence cannot be had of these recordings; empty where nothing is known against it."""
    for recording in {"replay": [candidate], "floor": [reference]}.get(kind, [reference, candidate]):
        name, index = recording.path.name, recording.index
        generation = GENERATIONS.get(index.generation.name) if index.generation else None
        read = {"replay": reference, "float64": recording, "floor": reference}.get(kind)  # what must have all
        if read and read.index.level:
            held = {"operators": "operators alone", "digest": "digests alone"}
            record = read.index.level.record
            return f"{read.path.name} has {held.get(record, 'some modules alone')} (record={record})"
        if kind == "observer" and not index.weights_at_end:
            return f"{name} does not have the weights at the end of training"
        if kind == "operators" and not {*reference.steps} & {*candidate.steps}:
            return "there is no step that both recorded"
        if index.trainer.package not in SCRIPTS:
            return f"{name} was recorded in a loop of its own, which cannot be started from here"
        if kind != "replay" and index.resumed_from:
            return f"{name} goes on from a checkpoint, which may be another one by now"
        if kind == "float64" and generation and generation.float64 == "fails":
            return f"NeMo {index.generation.name if index.generation else ''} does not train in float64"
    return ""


def prepare(folder: Path, kinds: Sequence[str]) -> None:
    """Remove what was gathered before of these kinds: what fails now would seem to be there."""
    places = {
        "replay": [files.REPLAY, f"{files.FLOAT64}/{files.REPLAY}"],
        "float64": [files.FLOAT64],
        "floor": [files.FLOOR],
        "operators": [files.OPERATORS],
        "schedule": [files.SCHEDULE],
        "observer": [files.OBSERVER],
    }
    for place in (folder / name for name in [BARE, TRACED, *(place for kind in kinds for place in places[kind])]):
        shutil.rmtree(place, ignore_errors=True)
        place.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def collect(
    reference: Recording, candidate: Recording, folder: Path, kinds: Sequence[str], why: str = FAILED
) -> Gathered:
    """Bind what the jobs wrote to the two recordings, say which kinds were had, and remove what is no longer needed.

    A noise floor is bound only where the run that measured it recorded the reference's own bits.

    Args:
        why: a kind that nothing is known against was not had.

    Raises:
        UserError: a file of evidence is damaged.
    """
    seals = seal_of(reference.index), seal_of(candidate.index)
    hindered = hindrances(kinds, reference, candidate, folder)
    checks, spent = list[Check](), dict[str, float]()
    if repeated := _recorded(folder / files.FLOOR):
        checks, seconds = _bind_floor(reference, repeated)
        spent |= {} if seconds is None else {"floor": seconds}
        hindered |= {"floor": f"the reference does not repeat itself: {checks[0].first}"} if seconds is None else {}
    traced = {side: _recorded(folder / TRACED / side) for side in SIDES}
    traced["reference"] = traced["reference"] or repeated
    both = _shown(reference, candidate)
    for side, run in traced.items():
        shared = spent.get("floor", 0.0) if run is repeated else 0.0  # of the time that this run took
        if run and "operators" in kinds and both in run.steps and run.step(both).has(OPERATORS):
            took = max(0.0, run.index.duration_s - shared)
            operators = bind(run, side, reference, candidate, both).model_copy(update={"seconds": took})
            write_evidence(folder / files.OPERATORS / f"{side}.json", operators)
            spent["operators"] = spent.get("operators", 0.0) + took
        if run and "schedule" in kinds and run.learning_rates():
            took = 0.0 if "operators" in spent else run.index.duration_s  # one run gives both
            schedule = bind_rates(run, side, reference, candidate).model_copy(update={"seconds": took})
            write_evidence(folder / files.SCHEDULE / f"{side}.json", schedule)
            spent["schedule"] = spent.get("schedule", 0.0) + took
    if "observer" in kinds and "observer" not in hindered:
        bare = {side: _recorded(folder / BARE / side) for side in SIDES}
        for side, run in ((side, run) for side, run in bare.items() if run):
            ends = pairs((reference if side == SIDES[0] else candidate).index.weights_at_end, run.index.weights_at_end)
            checks.append(_check("unwatched", side, {name: (one, other) for name, one, other in ends}))
        if all(bare.values()):
            spent["observer"] = sum(run.index.duration_s for run in bare.values() if run)
    if "replay" in kinds and (folder / files.REPLAY).is_file():
        spent["replay"] = read_evidence(folder / files.REPLAY, Replay).seconds
    if "float64" in kinds:
        double = folder / files.FLOAT64
        twice = [_recorded(double / name) for name in files.float64_names(reference.path, candidate.path)]
        spent |= {"float64": sum(run.index.duration_s for run in twice if run)} if all(twice) else {}
    had = [kind for kind in kinds if kind in spent]
    gathered = [Gathering(kind=kind, had=True, seconds=spent[kind]) for kind in had]
    for kind in (kind for kind in kinds if kind not in spent):
        gathered.append(Gathering(kind=kind, had=False, why=hindered.get(kind) or why, costs=COSTS[kind]))
    if checks:
        write_evidence(folder / files.OBSERVER, Observer(reference=seals[0], candidate=seals[1], checks=checks))
    _remove_recordings(folder)
    result = Gathered(reference=seals[0], candidate=seals[1], kinds=gathered)
    write_evidence(folder / files.GATHERED, result)
    return result


def _bind_floor(reference: Recording, repeated: Recording) -> tuple[list[Check], float | None]:
    """Bind the noise floors of a run to the reference that it repeats.

    Returns:
        what the run certifies, first that it recorded the reference's own bits; and the seconds that the floors took,
        or None where these bits are others: its floors are then removed.
    """
    checks, spent = [_repeats(reference, repeated)], 0.0
    for step in repeated.steps:
        path = repeated.path / step_folder(step) / files.NOISE_FLOOR
        floor = read_evidence(path, NoiseFloor)
        compared, differing = floor.restart_compared, floor.restart_differing
        checks.append(Check(what="restarts", side="reference", step=step, compared=compared, differing=differing))
        if checks[0].differing == 0:
            write_evidence(path, floor.model_copy(update={"reference": seal_of(reference.index)}))
            spent += floor.seconds
        else:
            path.unlink()
    path = repeated.path / files.VALIDATION_FLOOR
    if path.is_file() and checks[0].differing == 0:
        found = read_evidence(path, ValidationFloor)
        write_evidence(path, found.model_copy(update={"reference": seal_of(reference.index)}))
        spent += found.seconds
    else:
        path.unlink(missing_ok=True)
    return checks, None if checks[0].differing else spent


def _recorded(folder: Path) -> Recording | None:
    return open_recording(folder, verify=False) if (folder / INDEX).is_file() else None


def _repeats(original: Recording, again: Recording) -> Check:
    """By digests: first weights, every tensor of the recorded steps, the states of their generators and their draws.

    Validations are left out: the second run stops behind the last of these steps, and validates there.
    """
    pairs: dict[str, tuple[object, object]] = {}
    for name, tensors in original.index.tensors.items():
        if "/" not in name:  # of no step: a validation
            continue
        others = again.index.tensors.get(name, {})
        pairs |= {f"{name}: {path}": (entry, others.get(path)) for path, entry in tensors.items()}
    for step in original.steps:
        if step in again.index.steps:
            pairs[f"{step_folder(step)}: random states"] = original.step(step).rng(), again.step(step).rng()
    return _check("repeats", "reference", pairs)


def _check(what: What, side: Side, pairs: Mapping[str, tuple[object, object]]) -> Check:
    differing = [name for name, (one, other) in pairs.items() if one != other]
    return Check(what=what, side=side, compared=len(pairs), differing=len(differing), first=next(iter(differing), ""))


def _remove_recordings(folder: Path) -> None:
    """All but those in float64: what is to be known of the others is in small files by now."""
    for name in (BARE, TRACED):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (folder / files.FLOOR).glob("*"):
        if path.is_dir():
            for each in path.iterdir():
                if each.name != files.NOISE_FLOOR:
                    each.unlink()
            if not any(path.iterdir()):
                path.rmdir()
        elif path.name != files.VALIDATION_FLOOR:
            path.unlink()
