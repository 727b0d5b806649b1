"""Makes evidence on recordings of the miniature: a noise floor that is measured, replays that say what they must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nest_ssl.compare import compare_recordings
from nest_ssl.compare.comparison import Comparison
from nest_ssl.compare.evidence import open_evidence
from nest_ssl.compare.findings import Finding
from nest_ssl.recording import evidence as files
from nest_ssl.recording.address import Address, Kind, of_entry
from nest_ssl.recording.evidence import (
    Deviation,
    FloorEntry,
    Margin,
    NoiseFloor,
    Place,
    Replay,
    Unit,
    seal_of,
    write_evidence,
)
from nest_ssl.recording.layout import step_folder
from nest_ssl.recording.reader import open_recording
from nest_ssl.replay.loop import PHASES
from tests.compare.builder import Plan, record


def one_ulp_away(seed: int) -> Callable[[nn.Module], None]:
    """Moves every weight by one unit in the last place, up or down at random; no generator of the run is touched."""

    def move(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                away = torch.where(torch.rand(parameter.shape, generator=generator) < 0.5, -torch.inf, torch.inf)
                parameter.copy_(torch.nextafter(parameter, away))

    return move


def measured_floors(folder: Path, reference: Path, plan: Plan | None = None, repeats: int = 4) -> None:
    """`floor/step_N/noise_floor.json` of the reference, from so many repeats."""
    found: dict[tuple[int, Address], list[Finding]] = {}
    for seed in range(repeats):
        moved = record(folder / f"repeat_{seed}", replace(plan or Plan(), after_build=one_ulp_away(seed)))
        for rung in compare_recordings(open_recording(reference), open_recording(moved), declared=[]).rungs:
            for finding in rung.findings if rung.name not in ("initial_weights", "steps") else ():
                found.setdefault((finding.moment.step, finding.address), []).append(finding)
    entries: dict[int, list[FloorEntry]] = {}
    opened = open_recording(reference)
    names = [parameter.name for parameter in opened.structure.parameters if parameter.requires_grad]
    for place in [(step, of_entry(Kind.UPDATE, name)) for step in opened.steps for name in names]:
        found.setdefault(place, [])  # what no repeat moved has a floor of zero
    for (step, address), findings in found.items():
        metrics = [finding.metrics for finding in findings if finding.metrics]
        relative = [each.relative or 0.0 for each in metrics] or [0.0]
        largest = [float(each.max_abs or 0.0) for each in metrics] or [0.0]
        norm = max((each.norm or 0.0 for each in metrics), default=0.0)
        entries.setdefault(step, []).append(entry(address, max(relative), max(largest), norm))
    for step, rows in entries.items():
        write_floor(folder, reference, step, rows)


def entry(address: Address, relative: float, max_abs: float, norm: float = 1.0, **fields: float) -> FloorEntry:
    sizes = {"relative_largest": relative, "relative_typical": relative / 2}
    sizes |= {"max_abs_largest": max_abs, "max_abs_typical": max_abs / 2, "held_out": relative / 2}
    return FloorEntry(place=Place.of(address), norm=norm, **sizes, **fields)


def write_floor(
    folder: Path, reference: Path, step: int, entries: Sequence[FloorEntry], margins: Sequence[Margin] = ()
) -> None:
    seal = seal_of(open_recording(reference).index)
    made = NoiseFloor(
        reference=seal, step=step, repeats=4, held_out=0, entries=list(entries), margins=list(margins), seconds=2.0
    )
    write_evidence(folder / files.FLOOR / step_folder(step) / files.NOISE_FLOOR, made)


def unit(module: str | None, phase: str = "forward", step: int = 0, call: int | None = 0, **fields: Any) -> Unit:
    """A unit that came out with the same bits, unless `fields` say more."""
    whole = {"outcome": "same bits", "compared": 1, "order": 0, **fields}
    return Unit(step=step, phase=phase, module=module, call=None if module is None else call, **whole)  # type: ignore[arg-type]


def apart(place: Address, relative: float, max_abs: float = 1e-3, norm: float = 1.0, **fields: Any) -> Deviation:
    whole = {"elements": 8, "differing": 8, "shape": [2, 4], **fields}
    return Deviation(place=Place.of(place), relative=relative, max_abs=max_abs, norm=norm, **whole)


def output(module: str, call: int = 0, path: str = "") -> Address:
    return Address(Kind.OUTPUT, module, call, "", path)


def write_replay(
    folder: Path, reference: Path, candidate: Path, units: Sequence[Unit], name: str = files.REPLAY, **fields: Any
) -> None:
    """A replay in which `units` are as they are said to be; all else, calls, backwards and loop, has the same bits."""
    sides = open_recording(reference), open_recording(candidate)
    given = {(one.step, one.phase, one.module, one.call) for one in units}
    rest = [
        unit(call.module, phase, step, call.call, order=call.index)
        for step in sides[0].steps
        for call in sides[0].step(step).calls()
        for phase in ("forward", "backward")
        if (phase == "forward" or call.output_grads) and (step, phase, call.module, call.call) not in given
    ]
    loop = [(step, phase) for step in sides[0].steps for phase in PHASES if (step, phase, None, None) not in given]
    rest += [unit(None, phase, step) for step, phase in loop]
    seals = [seal_of(side.index) for side in sides]
    whole = {"precision": "float64" if files.FLOAT64 in name else "float32", "seconds": 1.5, **fields}
    made = Replay(reference=seals[0], candidate=seals[1], units=[*rest, *units], **whole)
    write_evidence(folder / name, made)


def explained(reference: Path, candidate: Path, folder: Path, **options: Any) -> Comparison:
    """The comparison with the evidence in `folder`."""
    sides = open_recording(reference), open_recording(candidate)
    return compare_recordings(*sides, evidence=open_evidence(folder, *sides), **{"declared": [], **options})
