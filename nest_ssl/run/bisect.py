"""Which runs find the first step at which two trainers part: over many steps hashes alone, then that step whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from nest_ssl.base.errors import UserError
from nest_ssl.compare.digests import DigestComparison
from nest_ssl.recording.digests import Fingerprint
from nest_ssl.recording.layout import INDEX
from nest_ssl.recording.reader import Recording, open_recording
from nest_ssl.run.evidence import SCRIPTS, SIDES, START, Job, Side

HASHES, WHOLE = "hashes", "step"  # folders of the two kinds of runs


def runs_of_hashes(sides: dict[Side, Recording], folder: Path, steps: int) -> list[Job]:
    """Both trainers once more over so many batches, every tensor of which is hashed.

    Raises:
        UserError: one was recorded in a loop of its own, which cannot be started from here.
    """
    return [_run(side, one, folder / HASHES, steps, f"save_steps=0-{steps - 1}", "record=digest")
            for side, one in sides.items()]  # fmt: skip


def runs_of_step(sides: dict[Side, Recording], folder: Path, steps: int, step: int) -> list[Job]:
    """Both as far as that step, which alone is recorded, in full.

    Raises:
        UserError: as `runs_of_hashes`.
    """
    return [_run(side, one, folder / WHOLE, steps, f"save_steps={step}", "record=modules", "stop_when_recorded=true")
            for side, one in sides.items()]  # fmt: skip


def _run(side: Side, recording: Recording, folder: Path, steps: int, *overrides: str) -> Job:
    package, spent = recording.index.trainer.package, recording.index.duration_s
    if package not in SCRIPTS:
        fix = "Record both sides with record='digest', compare these, and record the step that is found in full."
        raise UserError("a trainer that cannot be started from here", f"{recording.path} is of {package!r}", fix)
    words = [SCRIPTS[package], "--config-path", str(recording.path), "--config-name", "config", *overrides]
    words += [f"batches={steps}", f"output_dir={folder / side}", "overwrite=true", "include=null", "exclude=null"]
    words += ["exp_manager=null", "trainer.logger=false", "operators=false", "noise_floor=0", "learning_rates=0"]
    expected = START + spent / max(1, len(recording.steps)) * steps / 2
    return Job(f"{folder.name}-{side}", side, f"{folder.name} of {steps} batches", words, expected)


def forget(given: dict[Side, Recording], folder: Path) -> None:
    """Remove what an earlier search recorded in `folder`: of a run that fails now, it would seem to be there.

    Raises:
        UserError: that is what is to be trained again.
    """
    for side in SIDES:
        if not (folder / side / INDEX).is_file():
            continue
        if any((folder / side).resolve() == one.path.resolve() for one in given.values()):
            fix = "Choose another folder with --out."
            raise UserError("a recording would be replaced by what is made of it", str(folder / side), fix)
        shutil.rmtree(folder / side)


def made(folder: Path, kind: str) -> dict[Side, Recording]:
    """What the runs recorded.

    Raises:
        UserError: one of them failed.
    """
    found: dict[Side, Recording] = {}
    for side in SIDES:
        if not (folder / kind / side / INDEX).is_file():
            fix = "Its last lines say why."
            raise UserError(f"the {side} did not train", str(folder / f"{kind}-{side}.log"), fix)
        found[side] = open_recording(folder / kind / side, verify=False)
    return found


def described(found: DigestComparison) -> list[str]:
    """What was found, a line each."""
    first = found.first
    if first is None:
        return [f"all {len(found.steps):,} steps have the same bits ({found.tensors:,} tensors)"]
    place = first.address
    where = f"{place.module or 'the model'}, " if place.module is not None else ""
    lines = [
        f"step {first.step} is the first that differs; {len(found.steps) - 1:,} steps before it have the same bits",
        f"it parts at {where}{place.own_name or place.kind.value} ({place.kind.value}); "
        f"{first.differing:,} of {first.compared:,} tensors of that step differ",
    ]
    return lines + [
        f"{side}: {_numbers(one)}" for side, one in zip(SIDES, (first.reference, first.candidate), strict=True)
    ]


def _numbers(one: Fingerprint | None) -> str:
    if one is None:
        return "nothing"
    bounds = f"{one.least:.9g} to {one.most:.9g}, norm {one.norm:.9g}, {one.nans} NaN"
    return f"{list(one.shape)} {one.dtype}, {bounds}" if one.dtype else one.digest
